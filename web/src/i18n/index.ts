/**
 * The studio's words. `t.create.draw` is a text, `t.create.images(3)` one with values; a language is a dictionary of
 * the type `Dictionary`. Each screen has its own file under `en/`.
 */
import { en } from './en'

export type Dictionary = typeof en
export const t: Dictionary = en

const LOCALE = 'en'
const whole = new Intl.NumberFormat(LOCALE)

export const number = (value: number): string => whole.format(value)

/** A duration: `0.4 s`, `12 s`, `3 min`, `1 h 20 min`. */
export function duration(seconds: number): string {
  if (seconds < 10) return `${seconds.toFixed(1)} s`
  if (seconds < 90) return `${Math.round(seconds)} s`
  const minutes = Math.round(seconds / 60)
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`
}

/** A price; with more digits the smaller it is. */
export function price(value: number, currency: string): string {
  const digits = value === 0 || value >= 0.1 ? 2 : 4
  try {
    return new Intl.NumberFormat(LOCALE, {
      style: 'currency',
      currency,
      minimumFractionDigits: digits,
      maximumFractionDigits: digits,
    }).format(value)
  } catch {
    return `${value.toFixed(digits)} ${currency}` // not a currency that the browser knows
  }
}

/** A time: `14:05` of today, else `30 Nov, 14:05`. */
export function time(seconds: number): string {
  const date = new Date(seconds * 1000)
  const today = date.toDateString() === new Date().toDateString()
  return new Intl.DateTimeFormat(LOCALE, {
    hour: '2-digit',
    minute: '2-digit',
    hour12: false,
    ...(today ? {} : { day: 'numeric', month: 'short' }),
  }).format(date)
}

/** A month as the server names it: `2026-11` is `November 2026`, or `Nov` if it is to be short. */
export function month(name: string, style: 'long' | 'short' = 'long'): string {
  const format = style === 'long' ? ({ month: 'long', year: 'numeric' } as const) : ({ month: 'short' } as const)
  return new Intl.DateTimeFormat(LOCALE, { ...format, timeZone: 'UTC' }).format(new Date(`${name}-15T00:00Z`))
}

/** A size of a file. */
export function bytes(value: number): string {
  const units = ['B', 'kB', 'MB', 'GB', 'TB']
  const power = Math.min(Math.floor(Math.log10(Math.max(value, 1)) / 3), units.length - 1)
  return `${(value / 1000 ** power).toFixed(power > 2 ? 1 : 0)} ${units[power]}`
}
