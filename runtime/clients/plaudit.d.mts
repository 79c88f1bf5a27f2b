/** A file, its bytes, or the http(s) address where the service finds it. */
export type Picture = Blob | ArrayBuffer | ArrayBufferView | string;

/** What a query names: a picture, words, or a picture of the catalogue by its name or id. */
export type Like = Picture | { text: string } | { id: string };

/** What pictures were made from, such as an edit's input: one of all, or one or null of each. */
export type Sources = Picture | readonly (Picture | null)[] | null;

/** An array, or the files of an `<input type="file">`. */
export type Pictures = ArrayLike<Picture>;

export interface Options {
  token?: string;
  /** Pictures or prompts of one request, 32 by default, or fewer where that is too much for the service. */
  batch?: number;
  /** Bytes of pictures of one request, 8 MiB by default, unless a single one is larger. */
  batchBytes?: number;
  /** How often a request is sent again while the service is too busy or cannot be reached; 5 by default. */
  retries?: number;
  /** Seconds after which a request is not sent again, and in which it must be answered; 120 by default. */
  timeoutS?: number;
}

/** Why one picture has no answer. */
export interface ItemError {
  ok: false;
  error: { stage: string; reason: string; message: string };
}

/** What one output of a bundle says of a picture; what the head does not give is missing. */
export interface Values {
  score: number;
  uncertainty?: number;
  calibrated_score?: number;
  percentile?: number;
}

/** One picture's score. */
export interface Score extends Values {
  ok: true;
  /** The outputs asked for, by name. */
  outputs?: Record<string, Values>;
}

/** One picture's score and place; 1 is the preferred one, and `probability` that of being it. */
export interface Ranked extends Score {
  rank: number;
  probability: number;
}

/** One unit vector. */
export interface Embedding {
  ok: true;
  embedding: Float32Array;
}

/** What hits must be like; the fields mean what the options of `runtime similar` do. */
export interface Wishes {
  dislikes?: readonly Like[];
  k?: number;
  popularity_weight?: number;
  min_percentile?: number;
  min_similarity_percentile?: number;
  where?: string;
  dedup?: number;
  group_by?: string;
  per_group?: number;
  include_query?: boolean;
  front?: boolean;
}

/** One picture of the catalogue; blended_score = similarity + popularity_weight * popularity. */
export interface Hit {
  id: string;
  key: string;
  blended_score: number;
  similarity: number;
  popularity: number;
  percentile: number;
  count: number | null;
  rate: number | null;
  title: string | null;
  thumbnail: string;
  metadata: Record<string, unknown>;
}

/** A whole request has an error for an answer; `status` is null where there was no answer at all. */
export class ServiceError extends Error {
  readonly status: number | null;
  readonly reason: string;
  readonly detail: string;
  readonly requestId: string;
  constructor(status: number | null, reason: string, message: string, requestId: string);
}

export class Plaudit {
  constructor(url: string | URL, options?: Options);
  /** Scores of pictures under a prompt, or of each under its own; higher is preferred. */
  score(
    images: Pictures,
    prompts?: string | readonly string[] | null,
    asked?: { outputs?: readonly string[]; sources?: Sources },
  ): Promise<(Score | ItemError)[]>;
  /** Scores of pictures under one prompt, with the probability that each is the preferred one of all. */
  rank(
    images: Pictures,
    prompt?: string | null,
    asked?: { outputs?: readonly string[]; sources?: Sources },
  ): Promise<(Ranked | ItemError)[]>;
  /** Unit vectors of pictures and prompts. */
  embed(given: {
    images?: Pictures;
    prompts?: readonly string[];
  }): Promise<{ images: (Embedding | ItemError)[]; prompts: (Embedding | ItemError)[] }>;
  /** Popular pictures of the catalogue that are like `likes` and unlike `dislikes`, best first. */
  similar(likes: readonly Like[], wishes?: Wishes): Promise<Hit[]>;
  /** The address of a hit's picture, made small: its longer side has 64, 128, 256 or 512 pixels. */
  thumbnailUrl(hit: Hit | string, size?: 64 | 128 | 256 | 512): string;
  /** Whether the service can be reached and can serve, asked once. */
  ready(): Promise<boolean>;
}
