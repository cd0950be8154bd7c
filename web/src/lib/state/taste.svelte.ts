/** The account's taste, which is made of the pictures that it keeps: whether it may be used, and what it says of pictures. */
import { api, ApiError, data } from '../api'
import { events } from '../events.svelte'
import type { LiveSet } from './sets.svelte'

const PAUSE_MS = 2000
const LONGEST_PAUSE_MS = 32_000

class Taste {
  /** Whether pictures may be sorted by it; undefined while that is not known. */
  enabled = $state<boolean>()
  #orders = new Map<string, TasteOrder>()

  /** Raises ApiError. */
  async load(): Promise<void> {
    this.enabled = (await data(api.GET('/api/v1/taste'))).enabled
  }

  /** Raises ApiError. */
  async allow(enabled: boolean): Promise<void> {
    this.enabled = (await data(api.PUT('/api/v1/taste', { body: { enabled } }))).enabled
  }

  /** Have only pictures count that are drawn from now on. Raises ApiError. */
  async forget(): Promise<void> {
    await data(api.DELETE('/api/v1/taste'))
  }

  /** How a set is sorted, which lasts as long as the page. */
  orderOf(set: LiveSet): TasteOrder {
    const order = this.#orders.get(set.id) ?? new TasteOrder()
    this.#orders.set(set.id, order)
    return order
  }
}

/** Whether the pictures of a set are sorted by taste, and their scores. A score stays, so that no picture moves when others are done. */
export class TasteOrder {
  isOn = $state(false)
  /** Scores by the numbers of the pictures. */
  scores = $state.raw<ReadonlyMap<number, number>>(new Map())
  /** Number of kept pictures that make the taste; undefined before the first answer. */
  picks = $state<number>()

  toggle(): void {
    this.isOn = !this.isOn
    this.scores = new Map() // sorted anew, it goes by what is kept by then
    this.picks = undefined
  }

  /** Read the scores of pictures that have none, again and again while some cannot be compared yet. Returns what ends it. */
  follow(numbers: number[]): () => void {
    let [pause, timer, ended] = [PAUSE_MS, 0, false]
    const read = async (): Promise<void> => {
      clearTimeout(timer)
      const wanted = numbers.filter((number) => !this.scores.has(number))
      if (!wanted.length) return
      try {
        const { items, picks } = await data(api.GET('/api/v1/images/taste', { params: { query: { numbers: wanted.join(',') } } }))
        if (ended) return
        this.picks = picks
        if (items.length) this.scores = new Map([...this.scores, ...items.map(({ number, score }): [number, number] => [number, score])])
      } catch (error) {
        if (!(error instanceof ApiError)) throw error
        if (error.status === 409) taste.enabled = false // switched off elsewhere
        if (ended || error.status === 409) return
      }
      timer = window.setTimeout(() => void read(), pause)
      pause = Math.min(2 * pause, LONGEST_PAUSE_MS)
    }
    const endListening = events.on('library', ({ change }) => {
      if (change === 'kept' && !this.picks) void read()
    })
    void read()
    return () => {
      ended = true
      clearTimeout(timer)
      endListening()
    }
  }
}

export const taste = new Taste()
