/** Requests that could not be sent yet. They outlast a reload, and each has an idempotency key: none is drawn twice. */
import { toastError } from '../../ui/toasts.svelte'
import { api, ApiError, data, type JobSet, type Schemas } from '../api'

export type NewJobs = Pick<Schemas['NewJobs'], 'request'> & Partial<Schemas['NewJobs']> & Record<string, unknown>

export interface Letter {
  key: string
  body: NewJobs
}

const KEY = 'limner.outbox'
const PAUSE_MS = 5000

class Outbox {
  waiting = $state.raw<Letter[]>(read())
  #sending: Promise<void> | undefined
  #sent = new Set<(view: JobSet) => void>()

  /** Send a request; null where the server cannot be reached and it waits. Raises ApiError where it is refused. */
  async submit(letter: Letter): Promise<JobSet | null> {
    this.#keep([...this.waiting, letter]) // before it is sent: a reload in between loses nothing
    try {
      const view = await post(letter)
      this.#drop(letter)
      return view
    } catch (error) {
      if (error instanceof ApiError && error.unreachable) return null
      this.#drop(letter)
      throw error
    }
  }

  /** Call `listener` with each set whose request had to wait. */
  onSent(listener: (view: JobSet) => void): void {
    this.#sent.add(listener)
  }

  /** Send what waits, oldest first. One tab at a time does. */
  flush(): Promise<void> {
    this.#sending ??= this.#flush().finally(() => (this.#sending = undefined))
    return this.#sending
  }

  async #flush(): Promise<void> {
    this.waiting = read()
    for (const letter of this.waiting) {
      try {
        const view = await post(letter)
        this.#drop(letter)
        for (const call of this.#sent) call(view)
      } catch (error) {
        if (error instanceof ApiError && (error.unreachable || error.retryable)) {
          setTimeout(() => void this.flush().catch(toastError), PAUSE_MS)
          return
        }
        if (error instanceof ApiError && error.status === 401) return
        this.#drop(letter) // refused for good: its draft is still in the composer
        throw error
      }
    }
  }

  #keep(letters: Letter[]): void {
    this.waiting = letters
    try {
      localStorage.setItem(KEY, JSON.stringify(letters))
    } catch {
      // Without storage it waits as long as the page is open.
    }
  }

  #drop(letter: Letter): void {
    this.#keep(this.waiting.filter(({ key }) => key !== letter.key))
  }
}

const post = ({ key, body }: Letter): Promise<JobSet> =>
  data(api.POST('/api/v1/jobs', { body: body as Schemas['NewJobs'], params: { header: { 'idempotency-key': key } } }))

function read(): Letter[] {
  try {
    return JSON.parse(localStorage.getItem(KEY) ?? '[]') as Letter[]
  } catch {
    return []
  }
}

export const outbox = new Outbox()
