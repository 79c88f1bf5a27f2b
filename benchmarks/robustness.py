"""Pictures that are whole, cut short, changed or lie about their size, AVIF most of all, through every way of decoding.

    python benchmarks/robustness.py [PICTURE_OR_FOLDER ...] --avif 200 --seed 0 [--json]

The AVIF files are made here: 8, 10 and 12 bits, with and without alpha, every chroma and orientation, animations; some
of them cut, some mutated, some whose header claims a size that they do not have. All files go through a job's
processes; AVIF goes through `load_image` too, whose answer must be the same, and a whole AVIF's pixels must be those
that Pillow gives. Prints counts by outcome, the peak of the memory of all processes together (their resident sets,
sampled), and versions. Exits with 1 where a picture cost a process, came out as nothing, or differs, or where the
memory exceeds --max-mib.
"""

import argparse
import base64
import io
import json
import os
import sys
import threading
import time
import zlib
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, features

sys.path[0] = str(Path(__file__).parents[1])  # this folder has a file that would be taken for the package `embed`
sys.path.append(str(Path(__file__).parent))

from fuzz_images import SPEC, encoded, mutated  # noqa: E402

from embed.inputs.decoding import CHUNK, Chunk, DecodePool, Picture  # noqa: E402
from embed.inputs.images import BLAMED, ImageError, Limits, load_image  # noqa: E402
from embed.inputs.pixels import preprocess  # noqa: E402

SAMPLE_S = 0.01

# What Pillow cannot write: small AVIF files of 10 and 12 bits, made with libavif, zlib over base 85.
DEEP = [
    zlib.decompress(base64.b85decode(text))
    for text in (
        # 10 bits, 4:4:4
        (
            "c-muNU{FXasVqn=%S>Yc0uY^>nP!-qnV9D5Xy^zOdYzkElE?r7iWw<6MNl?FL1uCZ0~+8f$SlbPvlxL`E;A=T8N_h`@fjhajKV<74P<L%X6B"
            "{A)k*<5sZ3B_Vwr)VbAC=f*siS1f}#Q-?VVYWoDZZ$GK&jRq4p^Nu>=qc6l7Lpf&`ekxVV56Phy#&bEAR-NJuz2Kc^@!Ij4ew2?*I5fI{M#1"
            "-URk0UgG|$kfaNa#?OlVu=s~7l(zQec1*Dg-oMAjKYVK)f!zz;(=COjBwaAFD?6>%EPo($-7U7@^MDJRO59B_R=nFIQqlaHgV<Ucll-$4zCY"
            ")eERarVmk)L{Ne!7iJN=;EB(Ht^eUe1y2^c9#Ez@8E#=9f{m*ul*Ge?RIcD8h|Mdye-hk6O3t4Ng)|@&rYtGyb&%;5xbVF1ckM9%bY07O?c6"
            "hUH&mD#TpPBl@R~pQ=o;bJR*c_>#)$fiLw(=@;7HNstbU(HH&v^1GdnLQZ^=*<r-bbz|v2^^r>*>8ip-TFhZl9mMf1GVv*lIZIs>vaLlmE8I"
            "JHs-T-_Yc}b);KJKs&!7IJ4lxjh4(_?bYWrCdOQuxpk6O1ON$qs$2"
        ),
        # 12 bits, 4:4:4
        (
            "c-muNV30{GsVqn=%S>Yc0uY^>nP!-qnF!*)&P^>zWPkw0jFg-rD4U@mGr5ET4e%9YmgIt2j6f`xnUkLk;<$kLj1W;qejw%pvNbX@^U~mIrGT"
            "7NCMYkl%)rn&KPMk-S5{_0Q2~(l&MZjI2ht*$#RaKQ`xJm!0*D0)GAlAc0?a%-JV1&kvCPo9(IEjOB%GX|Q<RsSQ^CLlglr8!A@R(DT$rDL4"
            "r5_tYGwhl#Bx&-ON1D>I3on@%eHWENGTZoV-!A=tk&o%5)ZWNVuZt{dFfaGwJ4vexvZ9YIbQu`*Kxj!2WHBzk2|yeeE`FxqZwD2P1$AdSKnY"
            "|DpA<2;_zS^f3Mw(O$~`=Gp1BLJzq5~W=dke-g(`gf}|CSje3)(HCmn68+B^~^RlleFGWoMDCxSnZf@OUx!yCrv5E4z5|5Q?bKUY+Gs-iVat"
            "6E1)2|5H?yVm5$JXS}&F#<ZCM@E~E&rWiu(|kwTXN(L!TBHd9{#cGl){{bQ@(HC@!MZ{>Tz!(U*_fVyGEQ5M_W0jZekU?owG4ixMo&oe!^_A"
            "R_zz}&j_xlJpaB|^>5{q%SoTUW^CxGkP0dLF!>F;vVqAq0GINr;Q"
        ),
        # 10 bits, 4:2:0, with alpha
        (
            "c-muNU{FXasVqn=%S>Yc0uY^>nP!-qnV9D5Xz0Yiz}S|XT9U{B0g4$ZIYm%5LqTS82?HA7E66O#1+y4|SSK?lKN-YvVPIeaivTf`Kal<n<b!"
            "#P>wxq^Aa=^k%mX_CEF%Tvq%uLxNh~ukbk5Jo2iuI0VS>mw<`iTkLS%|k(_rpMEUm}^+X=GuaArYK0g#@XS&*C$q(w4|3sRvf6@XX*hy@BVD"
            ">6X>%v@YtK#C`^%+R@!!3QKHoSdIil$V@S0W^_`fvo}JQHXLzB*ifx0Slnj&LBo<QJz(9L25dfaI#9yOfIl0t}HG|%`LV9s>#gBOf0IjN`yI"
            "IF0&vP7S2G2voJC>voJ8RFtWC>18rH7o03=}#K6TWA!uJ_YBZHmfT8hgQ}^3_QiqIw&oH>YS!J%8ijCeIsT|kku1|!&Ys~*K-|p5nKH;7n*S"
            "}9xTz6Tl?!<i8=MTPyYN;%DzkK7*Gt=9eD>;&SuYTpaT>3&}UVriJHR`Q%XV*z<_ez$X&-)qGvaDj(v&*}U??kHy?6_$C-HwA#!7=JMALGN&"
            "XKG(c{(Xr}%y}6pp<jFQbX8XGrU_C8|9}qU1UYbpfPjgD(Q8K0<Lzy!E&`5n4x$Yg+?Qut2J|ia;gq$y^<vJeNo)s99wcZ9ovpM>+0Xy5*z7"
            "^kd83(M>-J66E01qFp4_I#lIGg=#D1&#vgxYp&s!*a`(NJM@S)msZtGJ2^Xt6JnNHoCec$*&s8LtS$5(SQ??o`a()FlW<?Fjyx4h+$6W7jz5"
            "5kjX+0XwfAEEgDzC@oCSKOY<6~a=C?-F-bY&)~9ZS}Xat}{}M&7!j8Be!2lYWel7?B#)*2M(LAOP%2s_Ap6bWc^g`q(uIuIp(jX2ToeP<iCR"
            "0-1xJ$3*1%m50(Y&dZzX1!M?vTUiI4;1snh~1r#~"
        ),
    )
]
# Says that it is 100 x 100, and holds a frame of 16384 x 16384, which takes 520 MB to decode.
LARGE_INSIDE = zlib.decompress(
    base64.b85decode(
        "c-muNU{FXasVqn=%S>Yc0uY^>nP!-qnV9D5Xy^nKdYzkElE?r7iWw<6MNl?FL1uCZ0~+8f$SlbPvlxL`E;A=T8N_h`@fjhajKT~I-10!SMrL"
        "MS8eFXukdw*;<t3IG7&_<Y<b&<X$}A`<0Mg!>1<Cn9S|qc$AQfs~3KR<zWL9K?1eiHEIDiySVws_HqdX5tNH{q^rzkHur-FeA2-zBdLgJYPx"
        "iCKg9mc}Q)XV~Om3nSUVu=s~7q|TP`v3p`E@ENf<uK|MlVJY)@S$t@|NlQWe>lJpcK(!J)Kz&tUlu9n);Uj<<2nCxWblf`?s#sXJ%4Z4RRxc"
        "WDzlQ4dd?m74*K|nC)Do(Pw(>GC3l`P3*YI}Hn)iHN&PU>>ZwHYlvOAHgx4tYwtjA09e(u0sJWx&j+#4a?x?w==8l>>YVN4Hqvld#E{%)@07"
        "+|ZM*"
    )
)


def whole(rng: np.random.Generator, i: int) -> bytes:
    """The i-th kind of sound AVIF, of random content."""
    if i % 8 < len(DEEP):
        return DEEP[i % 8]
    width, height = map(int, rng.integers(1, 200, 2))
    noise = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 4), dtype=np.uint8)
    mode = ("RGB", "RGBA", "L", "LA")[i % 4]
    image = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = i % 9
    # Pillow crashes when it writes an animation that is turned.
    more: dict[str, Any] = {"save_all": True, "append_images": [image.rotate(180)]} if i % 5 == 0 else {"exif": exif}
    return encoded(
        image,
        "AVIF",
        quality=int(rng.integers(20, 101)),
        speed=9,
        subsampling=("4:2:0", "4:2:2", "4:4:4", "4:0:0")[int(rng.integers(4))],
        range=("full", "limited")[i % 2],
        **more,
    )


def claiming(data: bytes, width: int, height: int) -> bytes:
    """The same AVIF with another size in its header."""
    at = data.index(b"ispe") + 8
    return data[:at] + width.to_bytes(4, "big") + height.to_bytes(4, "big") + data[at + 8 :]


def avif_files(count: int, seed: int) -> dict[str, bytes]:
    """`count` files: of ten, four whole, two cut, three mutated and one that claims a size; named by their kind."""
    files = {}
    sound: list[bytes] = []
    for i in range(count):
        rng = np.random.default_rng((seed, i))
        kind = ("whole", "cut", "mutated", "whole", "mutated", "claiming", "whole", "cut", "mutated", "whole")[i % 10]
        data = whole(rng, i) if kind != "mutated" else b""
        if kind == "whole":
            sound.append(data)
        elif kind == "cut":
            data = data[: int(rng.integers(len(data)))]
        elif kind == "mutated":
            data = mutated(sound, seed, i)
        else:
            size = [(60_000, 60_000), (65_535, 1), (0, 5), (2**31 - 1, 2**31 - 1), (8192, 8192), (3, 2)][i // 10 % 6]
            data = claiming(data, *size)
        files[f"{kind} {i}.avif"] = data
    if count >= 100:  # seconds to decode
        files["claiming too little.avif"] = LARGE_INSIDE
    return files


def read(paths: list[Path]) -> dict[str, bytes]:
    files = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    return {str(file): file.read_bytes() for file in files if file.is_file()}


def by_pillow(data: bytes) -> Image.Image:
    """What Pillow alone makes of it: upright, on white."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if not image.has_transparency_data:
        return image.convert("RGB")
    white = Image.new("RGB", image.size, "white")
    white.paste(image.convert("RGBA"), mask=image.convert("RGBA"))
    return white


class Memory(threading.Thread):
    """Watches what this process and its children hold together."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_bytes = 0
        self.stop = threading.Event()

    def run(self) -> None:
        own = os.getpid()
        while not self.stop.wait(SAMPLE_S):
            held = 0
            for status in Path("/proc").glob("[0-9]*/stat"):
                try:
                    fields = status.read_text().rpartition(")")[2].split()
                    if own in (int(status.parent.name), int(fields[1])):
                        held += int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
                except (OSError, IndexError):  # it has ended
                    continue
            self.peak_bytes = max(self.peak_bytes, held)


def by_a_job(files: dict[str, bytes], workers: int) -> dict[str, Picture]:
    """What became of each in the processes of a job."""
    pictures = [Picture(name, None, data) for name, data in files.items()]
    chunks = [Chunk(pictures[i : i + CHUNK]) for i in range(0, len(pictures), CHUNK)]
    with closing(DecodePool(SPEC, Limits(), workers)) as pool:
        return {picture.key: picture for chunk in pool.run(chunks) for picture in chunk.pictures}


def difference(name: str, data: bytes, job: Picture) -> str | None:
    """How `load_image` or Pillow disagrees with what the job made of an AVIF."""
    try:
        image = load_image(data)
    except ImageError as error:
        if job.failure is None or job.failure.reason != error.reason:
            return f"load_image says {error}, the job {job.failure or 'pixels'}"
        return "a whole file is refused" if name.startswith("whole") else None
    if job.failure is not None:
        return f"load_image gives a picture, the job says {job.failure}"
    if not np.array_equal(preprocess(image, SPEC), job.pixels):
        return "pixels of load_image and of the job differ"
    if name.startswith("whole") and not np.array_equal(image, by_pillow(data)):
        return "pixels differ from Pillow's"
    return None


def check(files: dict[str, bytes], workers: int) -> dict[str, Any]:
    """Counts by kind and outcome; what is wrong, by name."""
    memory = Memory()
    memory.start()
    start = time.perf_counter()
    found = by_a_job(files, workers)
    outcomes: Counter[str] = Counter()
    wrong: dict[str, str] = {}
    for name, data in files.items():
        job = found[name]
        outcome = "pixels" if job.failure is None else f"{job.failure.stage}: {job.failure.reason}"
        kind = f"AVIF, {name.split()[0]}" if name.endswith(".avif") and "/" not in name else "given"
        outcomes[f"{kind}, {outcome}"] += 1
        if (job.failure is None) == (job.pixels is None):
            wrong[name] = "neither pixels nor a failure"
        elif job.failure is not None and job.failure.reason == BLAMED:
            wrong[name] = BLAMED
        elif name.endswith(".avif") and (differs := difference(name, data, job)):
            wrong[name] = differs
    memory.stop.set()
    memory.join()
    return {
        "files": len(files),
        "outcomes": dict(sorted(outcomes.items())),
        "wrong": wrong,
        "peak_mib": round(memory.peak_bytes / 2**20),
        "seconds": round(time.perf_counter() - start, 1),
        "versions": {
            "python": sys.version.split()[0],
            "pillow": Image.__version__,
            "libavif": features.version("avif"),
        },
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path, metavar="PICTURE_OR_FOLDER")
    parser.add_argument("--avif", type=int, default=200, help="AVIF files to make (default 200)")
    parser.add_argument("--seed", type=int, default=0, help="of the files made (default 0)")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes of the job (default: cores)"
    )
    parser.add_argument("--max-mib", type=int, default=1536, help="the most memory allowed (default 1536)")
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout, nothing else")
    args = parser.parse_args()
    report = check(read(args.paths) | avif_files(args.avif, args.seed), args.workers)
    if args.json:
        print(json.dumps(report))
    else:
        for outcome, number in report["outcomes"].items():
            print(f"{number:7} {outcome}")
        print(
            f"{report['files']:7} files in {report['seconds']} s; peak {report['peak_mib']} MiB; {report['versions']}"
        )
        print(f"wrong: {report['wrong'] or 'none'}")
    return 1 if report["wrong"] or report["peak_mib"] > args.max_mib else 0


if __name__ == "__main__":
    sys.exit(main())
