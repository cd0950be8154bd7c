import { afterEach, beforeEach, expect, test, vi } from 'vitest'
import { toast, toasts } from './toasts.svelte'

beforeEach(() => void vi.useFakeTimers())
afterEach(() => void vi.useRealTimers())

test('a note that is pointed at stays, however often it was left before', () => {
  toast({ text: 'Deleted' })
  const { id } = toasts.all[0]!
  toasts.rest(id)
  toasts.hold(id)
  vi.advanceTimersByTime(60_000)
  expect(toasts.all).toHaveLength(1)
  toasts.rest(id)
  vi.advanceTimersByTime(60_000)
  expect(toasts.all).toHaveLength(0)
})
