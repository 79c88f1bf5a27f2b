/** A file, its bytes, or an http(s) address that the service fetches. */
export type Picture = Blob | ArrayBuffer | ArrayBufferView | string;

/** A part of a query: a picture, words, or a picture of the catalogue by its name or id. */
export type Like = Picture | { text: string } | { id: string };

/** Source pictures, such as the input of an edit: one for all, or one or null for each. */
export type Sources = Picture | readonly (Picture | null)[] | null;

/** An array, or the files of an `<input type="file">`. */
export type Pictures = ArrayLike<Picture>;

export interface Options {
  token?: string;
  /** The number of pictures or prompts in one request, 32 by default, or fewer if that is too much for the service. */
  batch?: number;
  /** The bytes of pictures in one request, 8 MiB by default, unless a single picture is larger. */
  batchBytes?: number;
  /** How many times a request is sent again while the service is too busy or cannot be reached; 5 by default. */
  retries?: number;
  /** A request is not sent again after so many seconds, and must be answered within as many; 120 by default. */
  timeoutS?: number;
}

/** The reason why one picture has no answer. */
export interface ItemError {
  ok: false;
  error: { stage: string; reason: string; message: string };
}

/** The values of one output of a bundle for a picture. Values that the head does not give are missing. */
export interface Values {
  score: number;
  uncertainty?: number;
  calibrated_score?: number;
  percentile?: number;
}

/** One picture's score. */
export interface Score extends Values {
  ok: true;
  /** The requested outputs by name. */
  outputs?: Record<string, Values>;
}

/** One picture's score and rank. Rank 1 is the preferred picture, and `probability` is that of being preferred. */
export interface Ranked extends Score {
  rank: number;
  probability: number;
}

/** One unit vector. */
export interface Embedding {
  ok: true;
  embedding: Float32Array;
}

/** Conditions for hits. The fields have the meaning of the options of `runtime similar`. */
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

/** One hit. blended_score = similarity + popularity_weight * popularity. */
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

/** The error of a whole request. `status` is null if there was no answer at all. */
export class ServiceError extends Error {
  readonly status: number | null;
  readonly reason: string;
  readonly detail: string;
  readonly requestId: string;
  constructor(status: number | null, reason: string, message: string, requestId: string);
}

export class Plaudit {
  constructor(url: string | URL, options?: Options);
  /** Scores pictures under a prompt, or each under its own. Higher is preferred. */
  score(
    images: Pictures,
    prompts?: string | readonly string[] | null,
    asked?: { outputs?: readonly string[]; sources?: Sources },
  ): Promise<(Score | ItemError)[]>;
  /** Scores pictures under one prompt, with the probability that each is the preferred one of all. */
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
  /** The address of a small version of a hit's picture, whose longer side has 64, 128, 256 or 512 pixels. */
  thumbnailUrl(hit: Hit | string, size?: 64 | 128 | 256 | 512): string;
  /** Whether the service can be reached and is ready. The request is sent only once. */
  ready(): Promise<boolean>;
}
