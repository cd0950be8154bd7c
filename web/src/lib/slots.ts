/** Places of a set's pictures: one that is stopped gives its place to the next seed. */

/** Ids of the jobs that had a place, one after the other: the last one is shown. */
export type Place = readonly string[]

export interface Placed {
  id: string
  /** Number in the set. */
  index: number
  /** Whether it was stopped or is being stopped. */
  gone: boolean
  /** When it ended; null while it has not. */
  endedAt: number | null
}

/**
 * The places of a set of which `asked` pictures were asked for at first. Whoever has a place keeps it. A picture that was added takes that of the
 * one it stands for (`instead`: new id -> old id), else that of the first one that was stopped, else one at the end.
 */
export function placed(before: readonly Place[], jobs: readonly Placed[], asked: number, instead: ReadonlyMap<string, string> = new Map()): Place[] {
  const byId = new Map(jobs.map((job) => [job.id, job]))
  const places = [...before]
  const known = new Set(places.flat())
  for (const job of [...jobs].sort((a, b) => a.index - b.index)) {
    if (known.has(job.id)) continue
    const old = job.index < asked ? undefined : (instead.get(job.id) ?? firstGone(places, byId))
    const at = places.findIndex((place) => place.at(-1) === old)
    if (at < 0) places.push([job.id])
    else places[at] = [...places[at]!, job.id]
  }
  return places
}

function firstGone(places: readonly Place[], byId: ReadonlyMap<string, Placed>): string | undefined {
  const gone = places.flatMap((place) => byId.get(place.at(-1)!) ?? []).filter((job) => job.gone)
  return gone.sort((a, b) => (a.endedAt ?? Infinity) - (b.endedAt ?? Infinity) || a.index - b.index)[0]?.id
}
