import { describe, expect, it } from 'vitest'
import { Mask, type Brush } from './raster'

const hard: Brush = { size: 10, hardness: 1, erase: false }
const at = (mask: Mask, x: number, y: number) => mask.pixels[y * mask.width + x]

const same = (a: Uint8Array, b: Uint8Array) => a.every((value, index) => value === b[index])

function stroke(mask: Mask, act: () => void): void {
  mask.begin()
  act()
  mask.end()
}

describe('a mask', () => {
  it('is painted within the radius of a hard brush and nowhere else', () => {
    const mask = new Mask(40, 30)
    mask.line(20, 15, 20, 15, hard)
    for (let y = 0; y < 30; y++) {
      for (let x = 0; x < 40; x++) expect(at(mask, x, y)).toBe(Math.hypot(x + 0.5 - 20, y + 0.5 - 15) <= 5 ? 255 : 0)
    }
  })

  it('has edges that fall off with a soft brush, and is not darker where a stroke crosses itself', () => {
    const mask = new Mask(60, 20)
    mask.line(10, 10, 50, 10, { size: 16, hardness: 0, erase: false })
    const column = Array.from({ length: 9 }, (_, row) => at(mask, 30, 10 + row)!)
    expect(column[0]).toBeGreaterThan(240)
    expect(column).toEqual(column.toSorted((a, b) => b - a))
    const before = mask.pixels.slice()
    mask.line(50, 10, 10, 10, { size: 16, hardness: 0, erase: false })
    expect(same(mask.pixels, before)).toBe(true)
  })

  it('is erased, filled in rectangles also beyond its edges, and inverted', () => {
    const mask = new Mask(20, 20)
    expect(mask.rectangle(15, 12, 99, -5)).toEqual({ x: 15, y: 0, width: 5, height: 12 })
    expect(mask.pixels.filter((one) => one === 255).length).toBe(60)
    mask.line(17, 6, 17, 6, { size: 4, hardness: 1, erase: true })
    expect(at(mask, 17, 6)).toBe(0)
    mask.invert()
    expect(at(mask, 17, 6)).toBe(255)
    expect(at(mask, 15, 0)).toBe(0)
  })

  it('comes back wholly by forty undos, and again by forty redos', () => {
    const mask = new Mask(150, 90)
    const states = [mask.pixels.slice()]
    for (let one = 0; one < 40; one++) {
      stroke(mask, () => mask.line(one * 4, one, 150 - one * 3, 90 - one * 2, { size: 3 + one, hardness: one / 40, erase: one % 5 === 4 }))
      states.push(mask.pixels.slice())
    }
    const different = states.filter((one, index) => index === 0 || !same(one, states[index - 1]!))
    expect(different.length).toBeGreaterThan(30)
    for (const state of different.slice(0, -1).reverse()) {
      expect(mask.undo()).toBeDefined()
      expect(same(mask.pixels, state)).toBe(true)
    }
    expect(mask.undo()).toBeUndefined()
    for (const state of different.slice(1)) {
      mask.redo()
      expect(same(mask.pixels, state)).toBe(true)
    }
    expect(mask.canRedo).toBe(false)
  })

  it('keeps no step for a stroke that changed nothing', () => {
    const mask = new Mask(20, 20)
    stroke(mask, () => mask.line(-50, -50, -40, -40, hard))
    expect(mask.canUndo).toBe(false)
  })
})
