import { describe, expect, it } from 'vitest'
import { ACTIONS, combinationOf, keyOf } from './keys'

const press = (key: string, held: Partial<KeyboardEvent> = {}) =>
  combinationOf({ key, ctrlKey: false, metaKey: false, altKey: false, shiftKey: false, ...held })

describe('combinationOf', () => {
  it('goes by the letter, whatever the layout and Caps Lock', () => {
    expect(press('f')).toBe('f')
    expect(press('F')).toBe('f')
    expect(press('B', { shiftKey: true })).toBe('Shift+B')
    expect(press('k', { metaKey: true })).toBe('Ctrl+k')
  })

  it('lets signs say themselves that Shift is held', () => {
    expect(press('?', { shiftKey: true })).toBe('?')
    expect(press('{', { shiftKey: true })).toBe('{')
    expect(press('Escape', { shiftKey: true })).toBe('Shift+Escape')
  })
})

describe('the table of keys', () => {
  it('gives no combination twice among actions that act together', () => {
    for (const group of ['pictures', 'prompt', 'sliders', 'compare', 'mask'] as const) {
      const rows = ACTIONS.map(keyOf).filter((row) => !row.shownOnly && ['everywhere', group].includes(row.group))
      const all = rows.flatMap((row) => row.keys)
      expect(all.filter((one, index) => all.indexOf(one) !== index)).toEqual([])
    }
  })

  it('has words for each action', () => {
    for (const action of ACTIONS) expect(keyOf(action).label).toBeTruthy()
  })
})
