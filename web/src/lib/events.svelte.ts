/**
 * The stream of events, opened once for all tabs of a browser.
 *
 * Browsers open six connections to a server; a stream in each tab would hang the seventh. So the tabs elect one by a
 * Web Lock, which holds the EventSource and passes events on through a BroadcastChannel. When it closes, the next tab
 * takes over after the last event that it saw. Without Web Locks (plain HTTP from another device) each tab has its own.
 */
import type { Schemas } from './api'

export interface JobEvent {
  job_id: string
  set_id: string
  account_id: string
  index: number
  change: 'queued' | 'started' | 'done' | 'failed' | 'cancelled' | 'dead' | 'requeued' | 'paused' | 'moved'
  at: number
  data?: Record<string, unknown>
}
export type ProgressEvent = Schemas['ProgressView'] & {
  job_id: string
  set_id: string
  account_id: string
  index: number
  /** A data URL. */
  preview?: string
}
export interface LibraryEvent {
  change: 'kept' | 'deleted' | 'restored' | 'albums'
  numbers: number[]
}
export interface EventTypes {
  job: JobEvent
  progress: ProgressEvent
  library: LibraryEvent
}
type Name = keyof EventTypes
const NAMES: Name[] = ['job', 'progress', 'library']

/** `lost`: the stream broke, and is tried again. */
export type Connection = 'connecting' | 'live' | 'lost'

type Message =
  | { kind: 'event'; name: Name; id: string; data: unknown }
  | { kind: 'state'; connection: Connection; id: string }
  | { kind: 'hello' }

const CHANNEL = 'limner-events'
const LONGEST_PAUSE = 15_000

class Events {
  connection = $state<Connection>('connecting')
  #listeners = new Map<Name, Set<(data: never) => void>>()
  #live = new Set<() => void>()
  #reconnected = new Set<() => void>()
  #channel: BroadcastChannel | undefined
  #source: EventSource | undefined
  #leads = false
  #lastId = ''
  #pause = 1000
  #timer: ReturnType<typeof setTimeout> | undefined

  start(): void {
    if (this.#channel) return
    this.#channel = new BroadcastChannel(CHANNEL)
    this.#channel.onmessage = ({ data }: MessageEvent<Message>) => this.#receive(data)
    // Whether the server can still be reached is for a new stream to say: it may be on this machine.
    for (const change of ['online', 'offline']) window.addEventListener(change, () => this.#leads && this.#open())
    if (!('locks' in navigator)) {
      this.#lead()
      return
    }
    this.#channel.postMessage({ kind: 'hello' } satisfies Message)
    void navigator.locks.request(CHANNEL, () => {
      this.#lead()
      return new Promise(() => undefined) // held until the tab closes
    })
  }

  /** Call `listener` with each event of a name, in this and in all other tabs. Returns what ends it. */
  on<N extends Name>(name: N, listener: (data: EventTypes[N]) => void): () => void {
    const all = this.#listeners.get(name) ?? new Set()
    this.#listeners.set(name, all)
    all.add(listener as (data: never) => void)
    return () => all.delete(listener as (data: never) => void)
  }

  /** Call `listener` whenever the stream comes to live, at the start too: what happened before is in no event. */
  onLive(listener: () => void): void {
    this.#live.add(listener)
  }

  /** Call `listener` whenever the stream lives again after a loss: what is not replayed is to be read anew. */
  onReconnect(listener: () => void): () => void {
    this.#reconnected.add(listener)
    return () => this.#reconnected.delete(listener)
  }

  #lead(): void {
    this.#leads = true
    this.#open()
  }

  #open(): void {
    clearTimeout(this.#timer)
    this.#source?.close()
    const after = this.#lastId ? `&after=${this.#lastId}` : ''
    const source = new EventSource(`/api/v1/events?previews=true${after}`)
    this.#source = source
    source.onopen = () => {
      this.#pause = 1000
      this.#set('live')
    }
    source.onerror = () => {
      this.#set('lost')
      // The browser tries again by itself after a broken connection, not after an answer such as 503.
      if (source.readyState === EventSource.CLOSED) {
        this.#timer = setTimeout(() => this.#open(), this.#pause)
        this.#pause = Math.min(this.#pause * 2, LONGEST_PAUSE)
      }
    }
    for (const name of NAMES) {
      source.addEventListener(name, (event: MessageEvent<string>) => {
        const message: Message = { kind: 'event', name, id: event.lastEventId, data: JSON.parse(event.data) }
        this.#channel?.postMessage(message)
        this.#receive(message)
      })
    }
  }

  #set(connection: Connection): void {
    this.#apply(connection)
    this.#tell()
  }

  #tell(): void {
    this.#channel?.postMessage({ kind: 'state', connection: this.connection, id: this.#lastId } satisfies Message)
  }

  #apply(connection: Connection): void {
    const before = this.connection
    this.connection = connection
    if (connection !== 'live' || before === 'live') return
    for (const call of this.#live) call()
    if (before === 'lost') for (const call of this.#reconnected) call()
  }

  #receive(message: Message): void {
    if (message.kind === 'hello') {
      if (this.#leads) this.#tell()
    } else if (message.kind === 'state') {
      if (this.#leads) return
      this.#lastId = message.id
      this.#apply(message.connection)
    } else {
      if (message.id) this.#lastId = message.id
      for (const call of this.#listeners.get(message.name) ?? []) call(message.data as never)
    }
  }
}

export const events = new Events()
