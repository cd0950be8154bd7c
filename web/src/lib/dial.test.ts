import { describe, expect, it } from 'vitest'
import { valuesBetween, windowAbout, type Scale } from './dial'

const scale = (least: number, most: number, step: number, value: number): Scale => ({ title: '', least, most, step, value, acts: true })
const valuesOf = (one: Scale): number[] => valuesBetween(...windowAbout(one), one)

describe('the values of a dial', () => {
  it('lie evenly about the present one', () => {
    expect(valuesOf(scale(1, 37.5, 0.1, 7.5))).toEqual([4.5, 5.5, 6.5, 7.5, 8.5, 9.5, 10.5])
    expect(valuesOf(scale(0, 20, 0.1, 4))).toEqual([2.5, 3, 3.5, 4, 4.5, 5, 5.5])
    expect(valuesOf(scale(1, 100, 1, 20))).toEqual([11, 14, 17, 20, 23, 26, 29])
  })

  it('stay on the slider: what one side lacks the other has', () => {
    expect(valuesOf(scale(0.05, 1, 0.05, 0.8))).toEqual([0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1])
    expect(valuesOf(scale(0, 1, 0.05, 0))).toEqual([0, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9])
    expect(valuesOf(scale(0, 1, 0.05, 1))).toEqual([0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 1])
  })

  it('are as many as there are steps where these are few', () => {
    expect(valuesOf(scale(1, 5, 1, 1))).toEqual([1, 2, 3, 4, 5])
  })

  it('have the present one also where it is off the steps, or beyond the end of the slider', () => {
    expect(valuesOf(scale(1, 37.5, 0.1, 7.25))).toContain(7.25)
    expect(valuesOf(scale(1, 100, 1, 150))).toContain(150)
  })

  it('are multiples of a step of pixels from the present one', () => {
    for (const value of valuesOf(scale(64, 2560, 8, 512))) expect(value % 8).toBe(0)
  })

  it('keep to the ends that are chosen', () => {
    const one = scale(1, 37.5, 0.1, 7.5)
    expect(valuesBetween(2, 4, one)).toEqual([2, 2.3, 2.7, 3, 3.3, 3.7, 4])
    expect(valuesBetween(2, 14, one)).toEqual([2, 4, 6, 7.5, 10, 12, 14])
    expect(valuesBetween(3, 3, one)).toEqual([3])
  })

  it('rise, each once, between least and most, whatever the slider', () => {
    for (const [least, most, step] of [[0, 1, 0.05], [1, 5, 1], [1, 1000, 1], [64, 4096, 8], [0, 100, 0.1]] as const) {
      for (let part = 0; part <= 20; part++) {
        const value = Number((least + Math.round(((most - least) * part) / 20 / step) * step).toFixed(6))
        const values = valuesOf(scale(least, most, step, value))
        expect(values).toEqual([...new Set(values)].sort((a, b) => a - b))
        expect(values).toContain(value)
        expect(values.length).toBe(Math.min(7, Math.round((most - least) / step) + 1))
        expect(Math.min(...values)).toBeGreaterThanOrEqual(least)
        expect(Math.max(...values)).toBeLessThanOrEqual(most)
      }
    }
  })
})
