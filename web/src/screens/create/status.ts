/** What a tile says of a picture that is not there yet. */
import { duration, t } from '../../i18n'
import type { LiveJob } from '../../lib/state/sets.svelte'

export function statusOf(job: LiveJob): string | undefined {
  if (job.stopping) return t.create.stopping
  if (job.state === 'running') return job.secondsLeft === undefined ? undefined : t.create.secondsLeft(duration(job.secondsLeft))
  if (job.state === 'cancelled') return t.create.stopped
  if (job.state === 'paused') return t.queue.states.paused
  if (job.state === 'queued') return job.place === null ? t.create.waiting : t.create.place(job.place)
  return undefined
}
