/** The account's jobs that have not ended, in the order in which they will be drawn, and those that ended last. */
import { api, ApiError, data, type Job } from '../api'
import { events } from '../events.svelte'

const LIMIT = 500
const RECENT = 48
const PAUSE_MS = 250

class Queue {
  jobs = $state.raw<Job[]>([])
  /** Number of all that have not ended; `jobs` has the first of them. */
  total = $state(0)
  /** The jobs that ended last, newest first; read once a screen asked for them by `follow`. */
  ended = $state.raw<Job[]>([])
  loaded = $state(false)
  error = $state.raw<ApiError>()
  /** When `jobs` was read, in milliseconds since the page was opened: `starts_in` counts from then. */
  readAt = $state(0)
  #timer: ReturnType<typeof setTimeout> | undefined
  #followers = 0
  #reads = 0
  /** Number of the read that is shown. */
  #shown = 0

  start(): void {
    events.on('job', () => this.#soon())
    events.onLive(() => this.#soon())
    void this.load()
  }

  /** Read the ended jobs as well, until the returned function is called. */
  follow(): () => void {
    this.#followers += 1
    void this.load()
    return () => (this.#followers -= 1)
  }

  async load(): Promise<void> {
    const read = ++this.#reads
    try {
      const [page, ended] = await Promise.all([
        data(api.GET('/api/v1/jobs', { params: { query: { order: 'queue', limit: LIMIT } } })),
        this.#followers
          ? data(
              api.GET('/api/v1/jobs', {
                params: { query: { state: ['done', 'failed', 'cancelled', 'dead'], limit: RECENT } },
              }),
            )
          : undefined,
      ])
      if (read < this.#shown) return // a later one was answered first
      this.#shown = read
      this.jobs = page.items
      this.total = page.total ?? page.items.length
      this.readAt = performance.now()
      if (ended) this.ended = ended.items
      this.loaded = true
      this.error = undefined
    } catch (error) {
      if (!(error instanceof ApiError)) throw error
      if (read > this.#shown) this.error = error
    }
  }

  /** Stop jobs. Returns how many had not ended. */
  stop(ids: string[]): Promise<number> {
    return this.#changed(data(api.POST('/api/v1/jobs/cancel', { body: { ids, all: false } })).then(({ changed }) => changed))
  }

  /** Stop all jobs of the account. Returns how many had not ended. */
  stopAll(): Promise<number> {
    return this.#changed(data(api.POST('/api/v1/jobs/cancel', { body: { ids: [], all: true } })).then(({ changed }) => changed))
  }

  /** Pause waiting jobs, or let them go on. */
  async change(ids: string[], state: 'paused' | 'queued'): Promise<void> {
    await this.#changed(data(api.PATCH('/api/v1/jobs', { body: { ids, state } })))
  }

  /** Move waiting jobs, in their order, before another one of one's own, or to the end (`last`). */
  async move(ids: string[], before: string): Promise<void> {
    const one = async (id: string) =>
      data(api.PATCH('/api/v1/jobs/{job_id}', { params: { path: { job_id: id } }, body: { before, state: null } }))
    await this.#changed(ids.reduce<Promise<unknown>>((done, id) => done.then(() => one(id)), Promise.resolve()))
  }

  /** Put jobs that failed or were stopped back into the queue. */
  async retry(ids: string[]): Promise<void> {
    const all = ids.map((id) => data(api.POST('/api/v1/jobs/{job_id}/retry', { params: { path: { job_id: id } } })))
    await this.#changed(Promise.all(all))
  }

  /** Read the queue after a change, also after one that failed: then the order on the screen was an old one. */
  #changed<T>(change: Promise<T>): Promise<T> {
    return change.finally(() => this.load())
  }

  #soon(): void {
    this.#timer ??= setTimeout(() => {
      this.#timer = undefined
      void this.load()
    }, PAUSE_MS)
  }
}

export const queue = new Queue()
