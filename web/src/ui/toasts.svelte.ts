/** Short notes at the lower edge: `toast({ text: 'Deleted', undo })`. */
import { announce } from './announce.svelte'
import { ApiError } from '../lib/api'

export interface Toast {
  id: number
  text: string
  tone: 'plain' | 'error'
  undo?: () => void
  hint?: string
}

const SHOWN_MS = 8000

class Toasts {
  all = $state.raw<Toast[]>([])
  #timers = new Map<number, ReturnType<typeof setTimeout>>()
  #last = 0

  add(toast: Omit<Toast, 'id'>): void {
    const id = ++this.#last
    this.all = [...this.all.slice(-2), { ...toast, id }]
    announce(toast.text, { assertive: toast.tone === 'error' })
    this.rest(id)
  }

  /** Let a note go after a while. */
  rest(id: number): void {
    this.hold(id)
    this.#timers.set(id, setTimeout(() => this.close(id), SHOWN_MS))
  }

  /** Keep a note while it is pointed at or has focus. */
  hold(id: number): void {
    clearTimeout(this.#timers.get(id))
  }

  close(id: number): void {
    this.hold(id)
    this.#timers.delete(id)
    this.all = this.all.filter((one) => one.id !== id)
  }
}

export const toasts = new Toasts()

export const toast = (note: { text: string; undo?: () => void; hint?: string; tone?: Toast['tone'] }): void =>
  toasts.add({ tone: 'plain', ...note })

/** Tell of an error that has no better place. Returns for ApiError, raises anything else. */
export function toastError(error: unknown): void {
  if (!(error instanceof ApiError)) throw error
  toast({ text: error.message, hint: error.hint ?? undefined, tone: 'error' })
}
