/**
 * What is in the composer. It lies on the server under one name, so that a reload or another device goes on with it,
 * and in this browser, so that typing without a connection is not lost.
 */
import { api, ApiError, data, type GenerationRequest } from '../api'
import { events } from '../events.svelte'

const NAME = 'studio'
const KEY = 'limner.draft'
const PAUSE_MS = 600
const RETRY_MS = 5000

/** The picture that a request was taken from, to be drawn in another way. It holds while `fields` are what the request has. */
export interface Origin {
  /** Id of the picture. */
  image: string
  relation: 'variation' | 'edited'
  fields: GenerationRequest
}

interface Kept {
  request: GenerationRequest
  origin?: Origin
  /** Version on the server that this one began from; 0 for none. */
  version: number
  /** Whether the server does not have it yet. */
  dirty: boolean
}

class Draft {
  /** Only what was chosen: what is not here is the model's default. */
  request = $state<GenerationRequest>({})
  /** Whether the server's draft was read, so that what is shown is what there is. */
  loaded = $state(false)
  saved = $state<'yes' | 'no' | 'saving'>('yes')
  origin = $state.raw<Origin>()
  /** A draft that another device has stored since something was entered here. It is shown by `showNewer` only. */
  newer = $state.raw<{ request: GenerationRequest; version: number }>()
  #version = 0
  #timer: ReturnType<typeof setTimeout> | undefined
  #last = '{}'
  /** Whether something was entered in this page. Until then, what another device stores is shown at once, as a whole. */
  #entered = false

  async start(): Promise<void> {
    const kept = read()
    if (kept) this.#show(kept.request, kept.version, kept.origin)
    if (kept?.dirty) this.saved = 'no'
    $effect.root(() => {
      $effect(() => this.#changed(JSON.stringify(this.request)))
    })
    events.onReconnect(() => void this.sync())
    document.addEventListener('visibilitychange', () => {
      if (document.visibilityState === 'visible') void this.sync()
      else void this.#save()
    })
    await this.sync()
  }

  /** Set a field, or with `undefined` leave it to the model's default. */
  set<K extends keyof GenerationRequest>(name: K, value: GenerationRequest[K] | undefined): void {
    if (value === undefined || value === null) delete this.request[name]
    else this.request[name] = value
  }

  /** Take over a whole request, such as a picture's. */
  replace(request: GenerationRequest, origin?: Origin): void {
    this.request = { ...request }
    this.origin = origin
  }

  /** What the request is of an earlier picture, for the set that is drawn of it. */
  get lineage(): { parents: string[]; relation: Origin['relation'] } | undefined {
    const { origin, request } = this
    if (!origin) return undefined
    const names = Object.keys(origin.fields) as (keyof GenerationRequest)[]
    return names.every((name) => request[name] === origin.fields[name]) ? { parents: [origin.image], relation: origin.relation } : undefined
  }

  /** Show what another device has stored in place of what is here. */
  showNewer(): void {
    if (this.newer) this.#show(this.newer.request, this.newer.version)
  }

  /**
   * Send what the server does not have, or read what another device has stored since. Where something was entered in this
   * page, that does not take its place: it waits as `newer`.
   */
  async sync(): Promise<void> {
    if (this.saved === 'no') return this.#save()
    try {
      const all = await data(api.GET('/api/v1/drafts'))
      const found = all.find((one) => one.name === NAME)
      if (found && this.saved === 'yes' && found.version > this.#version) this.#receive(found.value, found.version)
    } catch (error) {
      if (!(error instanceof ApiError)) throw error
      if (error.status >= 500) return void setTimeout(() => void this.sync(), RETRY_MS)
    }
    this.loaded = true
  }

  #receive(request: GenerationRequest, version: number): void {
    if (!this.#entered || JSON.stringify(request) === this.#last) this.#show(request, version, this.#entered ? this.origin : undefined)
    else this.newer = { request, version }
  }

  #show(request: GenerationRequest, version: number, origin?: Origin): void {
    this.newer = undefined
    this.origin = origin
    this.#version = version
    this.#last = JSON.stringify(request)
    this.request = { ...request }
    this.#keep()
  }

  #changed(text: string): void {
    if (text === this.#last) return
    this.#last = text
    this.#entered = true
    this.saved = 'no'
    this.#keep()
    clearTimeout(this.#timer)
    this.#timer = setTimeout(() => void this.#save(), PAUSE_MS)
  }

  async #save(): Promise<void> {
    if (this.saved !== 'no') return
    clearTimeout(this.#timer)
    const sent = this.#last
    this.saved = 'saving'
    try {
      const stored = await data(
        api.PUT('/api/v1/drafts/{name}', { params: { path: { name: NAME } }, body: JSON.parse(sent) as Record<string, never> }),
      )
      this.#version = stored.version
      this.newer = undefined // it was replaced
      this.loaded = true
      this.saved = this.#last === sent ? 'yes' : 'no'
    } catch (error) {
      this.saved = 'no' // kept here, and sent when the stream of events lives again
      if (!(error instanceof ApiError)) throw error
    }
    this.#keep()
    if (this.saved === 'no' && this.#last !== sent) this.#timer = setTimeout(() => void this.#save(), PAUSE_MS)
  }

  #keep(): void {
    const request = JSON.parse(this.#last) as GenerationRequest
    const kept: Kept = { request, origin: this.origin, version: this.#version, dirty: this.saved !== 'yes' }
    try {
      localStorage.setItem(KEY, JSON.stringify(kept))
    } catch {
      // Full or forbidden: the server's copy remains.
    }
  }
}

function read(): Kept | undefined {
  try {
    return JSON.parse(localStorage.getItem(KEY) ?? 'null') as Kept
  } catch {
    return undefined
  }
}

export const draft = new Draft()
