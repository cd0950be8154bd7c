/** The values of a dial: a few along a slider, about the one that it has. */
import type { GenerationRequest } from './api'

export const DIAL_VALUES = 7

/** A slider, and what it sets. */
export interface Scale {
  title: string
  least: number
  most: number
  step: number
  /** Where it stands. */
  value: number
  /** Whether this acts: it is chosen, or the model's default. */
  acts: boolean
}

/** A slider whose values can be drawn side by side. */
export interface DialScale extends Scale {
  field: keyof GenerationRequest
}

/** Share of a slider that is looked at where its value is near to an end. */
const SHARE = 0.1
const NICE = [1, 2, 3, 5, 10]

/** From where to where a dial goes at first: evenly about where the slider stands, as far as it reaches. */
export function windowAbout({ least, most, step, value }: Scale): [number, number] {
  const low = Math.min(least, value)
  const high = Math.max(most, value)
  const width = value > low ? Math.max(value - low, SHARE * (high - low)) : high - low
  const gap = step * niceCount(width / (DIAL_VALUES - 1) / step)
  const [below, above] = [value - low, high - value].map((room) => Math.floor(room / gap + 1e-9)) as [number, number]
  const others = DIAL_VALUES - 1
  const down = Math.min(below, Math.max(others / 2, others - above))
  const up = Math.min(above, others - down)
  return [exact(value - down * gap), exact(value + up * gap)]
}

/** Up to seven values from one number to another, rising and each once. Where the slider stands is among them if it lies between. */
export function valuesBetween(from: number, to: number, { step, value }: Scale): number[] {
  const places = Array.from({ length: DIAL_VALUES }, (_, place) => {
    const at = ((to - from) * place) / (DIAL_VALUES - 1)
    return exact(Math.min(from + Math.round(at / step) * step, to))
  })
  if (value >= from && value <= to) {
    const nearest = places.reduce((best, one, place) => (Math.abs(one - value) < Math.abs(places[best]! - value) ? place : best), 0)
    places[nearest] = value
  }
  return [...new Set(places)].sort((a, b) => a - b)
}

/** A whole number near to `count` that people would choose, at least 1. */
function niceCount(count: number): number {
  const power = 10 ** Math.max(0, Math.floor(Math.log10(count)))
  return power * NICE.reduce((best, one) => (Math.abs(one - count / power) < Math.abs(best - count / power) ? one : best))
}

/** A number without the dust of binary fractions. */
const exact = (value: number): number => Number(value.toFixed(6))
