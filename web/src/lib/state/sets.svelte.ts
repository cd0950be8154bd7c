/** Sets of pictures and their jobs, as they are drawn: from the ledger at the start, by events from then on. */
import { api, ApiError, data, randomId, type GenerationRequest, type Image, type Job, type JobSet, type Schemas } from '../api'
import { events, type JobEvent, type LibraryEvent, type ProgressEvent } from '../events.svelte'
import { announce } from '../../ui/announce.svelte'
import { t } from '../../i18n'
import { placed, type Place } from '../slots'
import { keepsPixels, refined } from '../picture'
import { uploadImage } from './references.svelte'
import { outbox, type NewJobs } from './outbox.svelte'

export type JobState = Job['state']
const ENDED: readonly JobState[] = ['done', 'failed', 'cancelled', 'dead']
const STATE_AFTER: Partial<Record<JobEvent['change'], JobState>> = {
  queued: 'queued',
  requeued: 'queued',
  started: 'running',
  paused: 'paused',
  cancelled: 'cancelled',
  failed: 'failed',
  dead: 'dead',
}

type Marks = Pick<Image, 'kept' | 'deleted_at'>

/** One picture that was asked for. Its fields are reactive one by one, so that a change renders its own tile only. */
export class LiveJob {
  readonly id: string
  readonly setId: string
  readonly index: number
  readonly predictedSeconds: number
  endedAt: number | null = null
  deviceSeconds = $state<number | null>(null)
  state = $state<JobState>('queued')
  step = $state(0)
  steps = $state(0)
  secondsLeft = $state<number>()
  place = $state<number | null>(null)
  stopping = $state(false)
  /** Object URL of the last preview. */
  preview = $state<string>()
  image = $state.raw<Image | null>(null)
  error = $state.raw<Schemas['ErrorView'] | null>(null)
  /** What was marked here and is not in every answer of the server yet. It goes before what the answers say. */
  marks = $state.raw<Partial<Marks>>()
  /** The request of this picture with every default filled in; null until it is asked for. */
  params = $state.raw<Record<string, unknown> | null>(null)

  constructor(view: Job) {
    this.id = view.id
    this.setId = view.set_id
    this.index = view.index
    this.predictedSeconds = view.predicted_seconds
    this.update(view)
  }

  get ended(): boolean {
    return ENDED.includes(this.state)
  }

  /** Whether it was stopped, or is about to be. */
  get gone(): boolean {
    return this.state === 'cancelled' || this.stopping
  }

  /** Whether it makes no picture any more that could be shown: it was put into the trash. */
  get deleted(): boolean {
    return Boolean(this.image?.deleted_at)
  }

  /** Share that is done, from 0 to 1. */
  get progress(): number {
    return this.state === 'done' ? 1 : this.steps ? this.step / this.steps : 0
  }

  update(view: Job): void {
    this.state = view.state
    this.place = view.place ?? null
    this.stopping = view.cancel_requested && !this.ended
    this.endedAt = view.finished_at ?? null
    this.deviceSeconds = view.device_seconds ?? null
    this.image = view.image ? { ...view.image, ...this.marks } : this.image
    this.error = view.error ?? null
    this.params = view.params ?? this.params
    if (view.progress) this.onProgress(view.progress)
    if (this.state !== 'running') this.#show(undefined)
  }

  onProgress(progress: Pick<ProgressEvent, 'step' | 'steps' | 'seconds_left' | 'preview'>): void {
    this.step = progress.step
    this.steps = progress.steps
    this.secondsLeft = progress.seconds_left
    if (progress.preview) this.#show(progress.preview)
  }

  #show(dataUrl: string | undefined): void {
    const old = this.preview
    this.preview = dataUrl && URL.createObjectURL(blobOf(dataUrl))
    if (old) setTimeout(() => URL.revokeObjectURL(old), 500) // until the next one is on the screen
  }
}

function blobOf(dataUrl: string): Blob {
  const comma = dataUrl.indexOf(',')
  const bytes = Uint8Array.from(atob(dataUrl.slice(comma + 1)), (char) => char.charCodeAt(0))
  return new Blob([bytes], { type: dataUrl.slice(5, dataUrl.indexOf(';')) })
}

/** A request and its pictures. */
export class LiveSet {
  readonly id: string
  readonly request: GenerationRequest
  readonly createdAt: number
  /** Ids of the pictures that it was made from, and what it is of them. */
  readonly parents: string[]
  readonly relation: JobSet['relation']
  /** The setting whose values its pictures have, where they differ in that instead of their seeds. */
  readonly dial: JobSet['dial']
  warnings = $state.raw<string[]>([])
  jobs = $state.raw<LiveJob[]>([])
  #places = $state.raw<Place[]>([])

  constructor(view: JobSet) {
    this.id = view.id
    this.request = view.request as GenerationRequest
    this.createdAt = view.created_at
    this.parents = view.parents
    this.relation = view.relation
    this.dial = view.dial
    this.update(view)
  }

  get ended(): boolean {
    return this.jobs.every((job) => job.ended)
  }

  get prompt(): string {
    return this.request.prompt ?? ''
  }

  /** What is shown, place by place. */
  readonly shown = $derived.by((): LiveJob[] => {
    const byId = new Map(this.jobs.map((job) => [job.id, job]))
    return this.#places.flatMap((place) => byId.get(place.at(-1)!) ?? []).filter((job) => !job.deleted)
  })

  /** A name of the place of a job, which stays when the next one takes it. */
  placeOf(job: LiveJob): string {
    return this.#places.find((place) => place.includes(job.id))?.[0] ?? job.id
  }

  /** The value of a picture on the set's dial. */
  valueOf(job: LiveJob): string | number | undefined {
    return this.dial?.values[job.index]
  }

  /** Pictures that were stopped, and the seconds of the device that this has saved. */
  get stopped(): { count: number; seconds: number } {
    const gone = this.jobs.filter((job) => job.state === 'cancelled')
    return { count: gone.length, seconds: gone.reduce((sum, job) => sum + Math.max(0, job.predictedSeconds - (job.deviceSeconds ?? 0)), 0) }
  }

  /** Take what the server says; `instead` tells which new job stands for which. */
  update(view: JobSet, instead?: ReadonlyMap<string, string>): void {
    this.warnings = view.warnings
    const known = new Map(this.jobs.map((job) => [job.id, job]))
    this.jobs = view.jobs.map((one) => {
      const job = known.get(one.id)
      job?.update(one)
      return job ?? new LiveJob(one)
    })
    const asked = this.dial?.values.length ?? this.request.num_images ?? 1
    this.#places = placed(this.#places, this.jobs, asked, instead)
  }
}

const PAGE = 12
/** Share of other noise in more of a picture. */
const VARIATION = 0.35

class Sets {
  /** Newest first. */
  all = $state.raw<LiveSet[]>([])
  error = $state.raw<ApiError>()
  loaded = $state(false)
  /** Whether older ones are on the server. */
  more = $state(false)
  #jobs = new Map<string, LiveJob>()
  #next: string | null = null
  #halfTold = new Set<string>()
  #reading = new Map<string, Promise<unknown>>()
  /** Requests whose answers say what pictures are marked as. */
  #answers = new Set<Promise<unknown>>()

  start(): void {
    events.on('job', (event) => void this.#onJob(event))
    events.on('progress', (event) => this.#onProgress(event))
    events.on('library', (event) => void this.#onLibrary(event))
    events.onLive(() => void this.load()) // also at the start: what ended before the stream came is in no event
  }

  /** The newest sets. Those that are here already are brought up to date. */
  async load(): Promise<void> {
    try {
      const page = await this.#answer(api.GET('/api/v1/sets', { params: { query: { limit: PAGE } } }))
      page.items.forEach((view) => this.#take(view))
      if (!this.loaded) this.#more(page.next ?? null)
      this.loaded = true
      this.error = undefined
    } catch (error) {
      if (!(error instanceof ApiError)) throw error
      this.error = error
    }
  }

  /** Older sets than those that are here. */
  async loadMore(): Promise<void> {
    if (!this.#next) return
    const page = await this.#answer(api.GET('/api/v1/sets', { params: { query: { limit: PAGE, before: this.#next } } }))
    page.items.forEach((view) => this.#take(view))
    this.#more(page.next ?? null)
  }

  /** A set by its id, where it is here. */
  find(id: string): LiveSet | undefined {
    return this.all.find((set) => set.id === id)
  }

  /** A set by its id, from the server where it is not here. */
  async get(id: string): Promise<LiveSet> {
    return this.find(id) ?? this.#take(await data(api.GET('/api/v1/sets/{set_id}', { params: { path: { set_id: id } } })))
  }

  job(id: string): LiveJob | undefined {
    return this.#jobs.get(id)
  }

  /**
   * Draw. The same request is never sent twice; without a connection it waits in the outbox, and null comes back.
   * Raises ApiError where the server refuses it.
   */
  async draw(body: NewJobs): Promise<LiveSet | null> {
    const view = await outbox.submit({ key: randomId(), body })
    if (!view) return null
    announce(t.shell.started(view.jobs.length))
    return this.#take(view)
  }

  /** Stop a picture. */
  async stop(job: LiveJob): Promise<void> {
    job.stopping = true
    try {
      job.update(await this.#answer(api.POST('/api/v1/jobs/{job_id}/cancel', { params: { path: { job_id: job.id } } })))
    } catch (error) {
      job.stopping = false
      throw error
    }
  }

  /** Stop a picture; the next seed is drawn in its place. */
  async replace(job: LiveJob): Promise<void> {
    const set = this.setOf(job)
    if (!set) return
    job.stopping = true
    try {
      const known = new Set(set.jobs.map(({ id }) => id))
      const body = { instead_of: [job.id] } as Schemas['MoreJobs']
      const view = await this.#answer(api.POST('/api/v1/sets/{set_id}/jobs', { params: { path: { set_id: set.id } }, body }))
      const added = view.jobs.filter(({ id }) => !known.has(id))
      this.#take(view, new Map(added.map(({ id }) => [id, job.id])))
    } catch (error) {
      job.stopping = false
      throw error
    }
  }

  /** Mark pictures as ones to keep, or not any more. */
  async keep(jobs: LiveJob[], kept: boolean): Promise<void> {
    await this.#mark(jobs, { kept })
  }

  /** Put pictures into the trash, or take them out of it. */
  async remove(jobs: LiveJob[], deleted = true): Promise<void> {
    await this.#mark(jobs, { deleted })
  }

  async #mark(jobs: LiveJob[], change: { kept: boolean } | { deleted: boolean }): Promise<void> {
    const images = jobs.flatMap(({ image }) => image ?? [])
    if (!images.length) return
    const marks: Partial<Marks> = 'kept' in change ? change : { deleted_at: change.deleted ? Date.now() / 1000 : null }
    const before = jobs.map(({ image, marks }) => ({ image, marks }))
    for (const job of jobs) {
      job.marks = { ...job.marks, ...marks } // at once; the server's answer only confirms it
      if (job.image) job.image = { ...job.image, ...marks }
    }
    const made = jobs.map((job) => job.marks)
    try {
      await data(api.PATCH('/api/v1/images', { body: { ids: images.map(({ id }) => id), ...change } as Schemas['ImageMarks'] }))
    } catch (error) {
      jobs.forEach((job, index) => Object.assign(job, before[index]))
      throw error
    }
    // What was asked for earlier may have been answered from before the marks.
    void Promise.allSettled(this.#answers).then(() => jobs.forEach((job, index) => job.marks === made[index] && (job.marks = undefined)))
  }

  /** The data of a call that tells how pictures are marked. */
  async #answer<T>(call: Parameters<typeof data<T>>[0]): Promise<T> {
    const answer = data(call)
    this.#answers.add(answer)
    try {
      return await answer
    } finally {
      this.#answers.delete(answer)
    }
  }

  /** Draw more like a picture: its seed, with a little of others. */
  async vary(job: LiveJob, count: number): Promise<LiveSet | null> {
    const { image, request } = await this.#made(job)
    return this.draw({
      request: { ...request, variation_seed: null, variation_strength: VARIATION, num_images: count } as Schemas['GenerationRequest'],
      parents: [image.id],
      relation: 'variation',
    })
  }

  /** Draw a picture again from its own seed, and then larger with more detail; one that kept pixels of another, from its own pixels. */
  async refine(job: LiveJob): Promise<LiveSet | null> {
    const { image, request } = await this.#made(job)
    const { steps } = job.params as GenerationRequest
    const finished = keepsPixels(request) ? { ...image, steps: steps ?? 1, reference: await uploadImage(image.id) } : undefined
    return this.draw({
      request: refined(request, finished) as Schemas['GenerationRequest'],
      parents: [image.id],
      relation: 'refined',
    })
  }

  /** A picture and its request, with its own seeds. Raises ApiError. */
  async #made(job: LiveJob): Promise<{ image: Image; request: GenerationRequest }> {
    const set = this.setOf(job)
    if (!job.image || !set) throw new Error('this job has no picture')
    if (!job.params) job.update(await this.#answer(api.GET('/api/v1/jobs/{job_id}', { params: { path: { job_id: job.id } } })))
    const { seed, variation_seed } = job.params as GenerationRequest
    const dialled = set.dial ? { [set.dial.field]: set.valueOf(job) } : {}
    return { image: job.image, request: { ...set.request, ...dialled, seed, variation_seed } }
  }

  /** The set of a job, where it is here. */
  setOf(job: LiveJob): LiveSet | undefined {
    return this.find(job.setId)
  }

  /** Stop what has not ended of a set. */
  async stopSet(set: LiveSet): Promise<void> {
    const stopped = set.jobs.filter((job) => !job.ended && !job.stopping)
    stopped.forEach((job) => (job.stopping = true))
    try {
      this.#take(await this.#answer(api.POST('/api/v1/sets/{set_id}/cancel', { params: { path: { set_id: set.id } } })))
    } catch (error) {
      stopped.forEach((job) => (job.stopping = false))
      throw error
    }
  }

  /** Put a picture that failed or was stopped back into the queue. */
  async retry(job: LiveJob): Promise<void> {
    job.update(await this.#answer(api.POST('/api/v1/jobs/{job_id}/retry', { params: { path: { job_id: job.id } } })))
  }

  /** Take a set that came by another way, such as the outbox. */
  take(view: JobSet): LiveSet {
    return this.#take(view)
  }

  #take(view: JobSet, instead?: ReadonlyMap<string, string>): LiveSet {
    let set = this.find(view.id)
    if (set) set.update(view, instead)
    else {
      set = new LiveSet(view)
      this.all = [...this.all, set].sort((a, b) => b.createdAt - a.createdAt)
    }
    for (const job of set.jobs) this.#jobs.set(job.id, job)
    return set
  }

  #more(next: string | null): void {
    this.#next = next
    this.more = next !== null
  }

  async #onJob(event: JobEvent): Promise<void> {
    const job = this.#jobs.get(event.job_id)
    try {
      if (!job) {
        // Drawn in another tab or on another device: the set is read once, with its first event.
        if (event.change === 'queued' && (event.index === 0 || this.find(event.set_id))) await this.#reload(event.set_id)
        return
      }
      const state = STATE_AFTER[event.change]
      if (state) job.state = state
      if (['done', 'failed', 'dead', 'cancelled'].includes(event.change)) {
        job.update(await this.#answer(api.GET('/api/v1/jobs/{job_id}', { params: { path: { job_id: job.id } } })))
        this.#tell(job)
      }
    } catch (error) {
      if (!(error instanceof ApiError)) throw error // the next event, or the return of the stream, brings it
    }
  }

  /** Read a set anew, once for all that asks for it meanwhile. */
  #reload(id: string): Promise<unknown> {
    const reading = this.#reading.get(id) ?? this.#answer(api.GET('/api/v1/sets/{set_id}', { params: { path: { set_id: id } } })).then((view) => this.#take(view))
    this.#reading.set(id, reading)
    return reading.finally(() => this.#reading.delete(id))
  }

  async #onLibrary({ numbers }: LibraryEvent): Promise<void> {
    const changed = new Set(numbers)
    const here = new Set([...this.#jobs.values()].filter((job) => job.image && changed.has(job.image.number)).map((job) => job.setId))
    try {
      for (const id of here) await this.#reload(id)
    } catch (error) {
      if (!(error instanceof ApiError)) throw error // the return of the stream brings it
    }
  }

  #onProgress(event: ProgressEvent): void {
    const job = this.#jobs.get(event.job_id)
    if (!job || job.ended) return
    job.state = 'running'
    job.onProgress(event)
    const set = this.setOf(job)
    if (set && !this.#halfTold.has(set.id) && shareOf(set) >= 0.5) {
      this.#halfTold.add(set.id)
      announce(t.shell.half)
    }
  }

  #tell(job: LiveJob): void {
    const set = this.setOf(job)
    if (!set?.ended) return
    const done = set.jobs.filter((one) => one.state === 'done').length
    const failed = set.jobs.filter((one) => one.state === 'failed' || one.state === 'dead').length
    if (failed) announce(t.shell.failed(failed), { assertive: true })
    if (done) announce(t.shell.done(done, set.prompt))
    for (const call of this.#whenEnded) call(set)
  }

  #whenEnded = new Set<(set: LiveSet) => void>()

  /** Call `listener` when all pictures of a set have ended. */
  onEnd(listener: (set: LiveSet) => void): () => void {
    this.#whenEnded.add(listener)
    return () => this.#whenEnded.delete(listener)
  }
}

const shareOf = (set: LiveSet): number => set.jobs.reduce((sum, job) => sum + (job.ended ? 1 : job.progress), 0) / set.jobs.length

export const sets = new Sets()
