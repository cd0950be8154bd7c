import { describe, expect, it } from 'vitest'
import { actualSize, FIT, fitScale, pan, settle, zoomAt } from './zoom'

const stage = { width: 800, height: 600 }
const picture = { width: 400, height: 400 }

/** Where on the stage, from its middle, a point of the picture is. */
function placeOf(zoom: typeof FIT, at: { x: number; y: number }) {
  const scale = fitScale(stage, picture) * zoom.factor
  return { x: (at.x - zoom.x) * picture.width * scale, y: (at.y - zoom.y) * picture.height * scale }
}

describe('zoom', () => {
  it('fits the smaller side', () => {
    expect(fitScale(stage, picture)).toBe(1.5)
    expect(actualSize(FIT, stage, picture).factor).toBeCloseTo(1 / 1.5)
  })

  it('keeps what is under the pointer there', () => {
    const zoomed = zoomAt({ factor: 4, x: 0.5, y: 0.5 }, 2, { x: 100, y: -60 }, stage, picture)
    const under = { x: 0.5 + 100 / (400 * 1.5 * 4), y: 0.5 - 60 / (400 * 1.5 * 4) }
    expect(zoomed.factor).toBe(8)
    expect(placeOf(zoomed, under).x).toBeCloseTo(100)
    expect(placeOf(zoomed, under).y).toBeCloseTo(-60)
  })

  it('moves with the hand, and stops at the edges', () => {
    const from = { factor: 4, x: 0.5, y: 0.5 }
    const moved = pan(from, { x: 30, y: 40 }, stage, picture)
    expect(placeOf(moved, { x: 0.5, y: 0.5 })).toEqual({ x: expect.closeTo(30), y: expect.closeTo(40) })
    expect(pan(from, { x: 1e6, y: 1e6 }, stage, picture)).toEqual({ factor: 4, x: expect.closeTo(1 / 6), y: 0.125 })
    expect(pan(FIT, { x: 50, y: 50 }, stage, picture)).toEqual(FIT)
  })

  it('has limits', () => {
    expect(settle({ factor: 0.01, x: 0.5, y: 0.5 }, stage, picture).factor).toBeCloseTo(1 / 1.5)
    expect(settle({ factor: 1e6, x: 0.5, y: 0.5 }, stage, picture).factor).toBeCloseTo(32 / 1.5)
  })
})
