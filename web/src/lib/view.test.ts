import { describe, expect, it } from 'vitest'
import { addressOf, chip, isSearch, partAt, queryOf, textOf, viewOf } from './view'

describe('views and addresses', () => {
  it('come back from each other', () => {
    for (const text of ['', 'in=kept', 'in=alb_1&q=red+boat&order=taste', 'like=12']) {
      expect(new URLSearchParams(Object.entries(addressOf(viewOf(new URLSearchParams(text)))).filter(([, value]) => value)).toString()).toBe(text)
    }
  })

  it('an unknown order is the usual one', () => {
    expect(viewOf(new URLSearchParams('order=price')).order).toBe('relevance')
  })

  it('are searches with words, a likeness or taste, but not in the trash', () => {
    const view = viewOf(new URLSearchParams(''))
    expect(isSearch(view)).toBe(false)
    expect(isSearch({ ...view, q: 'x' })).toBe(true)
    expect(isSearch({ ...view, like: '1' })).toBe(true)
    expect(isSearch({ ...view, order: 'taste' })).toBe(true)
    expect(isSearch({ ...view, place: 'trash', q: 'x' })).toBe(false)
  })

  it('search within their place', () => {
    const view = viewOf(new URLSearchParams('q=red boat'))
    expect(queryOf(view, undefined)).toBe('red boat')
    expect(queryOf({ ...view, place: 'kept' }, undefined)).toBe('red boat kept:yes')
    expect(queryOf({ ...view, place: 'alb_1' }, 'For Anna')).toBe('red boat album:"For Anna"')
  })
})

describe('terms', () => {
  it('become text again', () => {
    const terms = [
      { kind: 'word', value: 'red' },
      { kind: 'phrase', value: 'on the sea' },
      { kind: 'seed', value: '7' },
      { kind: 'album', value: 'For Anna' },
    ]
    expect(textOf(terms)).toBe('red "on the sea" seed:7 album:"For Anna"')
  })

  it('a chip has quotes where its value needs them', () => {
    expect(chip('date', '>2026-11')).toBe('date:>2026-11')
    expect(chip('album', 'a "b" c')).toBe('album:"a b c"')
  })
})

describe('partAt', () => {
  it('is the word at the caret', () => {
    expect(partAt('red bo', 6)).toEqual({ from: 4, to: 6, kind: undefined, typed: 'bo' })
    expect(partAt('red boat', 6)).toEqual({ from: 4, to: 8, kind: undefined, typed: 'bo' })
    expect(partAt('red ', 4)).toEqual({ from: 4, to: 4, kind: undefined, typed: '' })
  })

  it('is a chip, also in quotes', () => {
    expect(partAt('red model:in', 12)).toEqual({ from: 4, to: 12, kind: 'model', typed: 'in' })
    expect(partAt('album:"For A" x', 12)).toEqual({ from: 0, to: 13, kind: 'album', typed: 'For A' })
  })
})
