/** How the queue is laid out, and where jobs go when they are moved. */
import type { Job } from '../../lib/api'

export interface Group {
  /** Stays the same while jobs of the group end. */
  key: string
  setId: string
  jobs: Job[]
}

/** Jobs of one set that follow each other, as one group. A set that was taken apart has several. */
export function groupBySet(jobs: readonly Job[]): Group[] {
  const groups: Group[] = []
  const seen = new Map<string, number>()
  for (const job of jobs) {
    const last = groups.at(-1)
    if (last?.setId === job.set_id) {
      last.jobs.push(job)
      continue
    }
    const number = seen.get(job.set_id) ?? 0
    seen.set(job.set_id, number + 1)
    groups.push({ key: `${job.set_id} ${number}`, setId: job.set_id, jobs: [job] })
  }
  return groups
}

export const canMove = (job: Job): boolean => job.state === 'queued' || job.state === 'paused'

/** The jobs among which some may be moved: those that wait as they do, in the same lane. */
export function neighbours(jobs: readonly Job[], ids: ReadonlySet<string>): Job[] {
  const first = jobs.find((job) => ids.has(job.id) && canMove(job))
  return first ? jobs.filter((job) => job.state === first.state && job.lane === first.lane) : []
}

/** The id of the job that moved ones go before when they go up or down by one place, or `last`; undefined at the edge. */
export function oneFurther(jobs: readonly Job[], ids: ReadonlySet<string>, step: -1 | 1): string | undefined {
  const all = neighbours(jobs, ids)
  const others = all.filter((job) => !ids.has(job.id))
  const edge = step < 0 ? all.findIndex((job) => ids.has(job.id)) : all.findLastIndex((job) => ids.has(job.id))
  if (edge < 0) return undefined
  const ahead = all.slice(0, edge).filter((job) => !ids.has(job.id)).length
  if (step < 0) return others[ahead - 1]?.id
  if (ahead >= others.length) return undefined
  return others[ahead + 1]?.id ?? 'last'
}

/** Ids of those of `ids` that may be moved together, in the order of the queue. */
export const movable = (jobs: readonly Job[], ids: ReadonlySet<string>): string[] =>
  neighbours(jobs, ids)
    .filter((job) => ids.has(job.id))
    .map((job) => job.id)
