// Sends the trial requests of the page at /docs. The token stays in its field, and is sent only to this service.

const LONGEST = 20_000; // the most characters of an answer to show

/** The address of a form's request, from its path and the parameters that were filled in. */
function addressOf(form) {
  let path = form.dataset.path;
  const query = new URLSearchParams();
  for (const input of form.querySelectorAll("[data-in]")) {
    if (input.dataset.in === "path") path = path.replace(`{${input.name}}`, encodeURIComponent(input.value));
    else if (input.value) query.append(input.name, input.value);
  }
  // Relative to the page, so that a proxy may serve it under a path.
  return new URL(`.${path}${query.size ? `?${query}` : ""}`, document.baseURI);
}

/** The body of the request, and its headers. */
function bodyOf(form) {
  const part = form.querySelector("fieldset:not([hidden])");
  if (!part) return {};
  const json = part.querySelector("textarea");
  if (json) return { body: json.value, headers: { "Content-Type": part.dataset.type } };
  const body = new FormData();
  for (const input of part.querySelectorAll("input")) {
    for (const file of input.files ?? []) body.append(input.name, file);
    if (input.type !== "file" && input.value) body.append(input.name, input.value);
  }
  return { body };
}

/** The service's answer as elements to show. */
async function shown(answer) {
  const head = document.createElement("p");
  head.textContent = `${answer.status} ${answer.statusText}, request ${answer.headers.get("X-Request-Id")}`;
  const type = answer.headers.get("Content-Type") ?? "";
  if (type.startsWith("image/")) {
    const image = document.createElement("img");
    image.src = URL.createObjectURL(await answer.blob());
    image.alt = "the picture that was answered";
    image.onload = () => URL.revokeObjectURL(image.src);
    return [head, image];
  }
  let text = await answer.text();
  if (type.startsWith("application/json")) text = JSON.stringify(JSON.parse(text), null, 2);
  const body = document.createElement("pre");
  body.textContent = text.length > LONGEST ? `${text.slice(0, LONGEST)}\n...` : text;
  return [head, body];
}

async function send(event) {
  event.preventDefault();
  const form = event.target;
  const output = form.nextElementSibling;
  const token = document.getElementById("token").value;
  const { body, headers = {} } = bodyOf(form);
  if (token) headers.Authorization = `Bearer ${token}`;
  output.textContent = "...";
  try {
    output.replaceChildren(...(await shown(await fetch(addressOf(form), { method: form.dataset.method, body, headers }))));
  } catch (error) {
    output.textContent = String(error);
  }
}

for (const form of document.querySelectorAll("form")) {
  form.addEventListener("submit", send);
  form.querySelector("select")?.addEventListener("change", (event) => {
    for (const part of form.querySelectorAll("fieldset")) part.hidden = part.dataset.type !== event.target.value;
  });
}
