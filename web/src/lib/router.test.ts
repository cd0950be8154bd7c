import { describe, expect, it } from 'vitest'
import { href, parse } from './router.svelte'

describe('routes', () => {
  it('come back as they were', () => {
    const hash = href('history', ['albums', 'a/b ü'], { q: 'red boat & sea', page: 2, none: null, empty: '' })
    const route = parse(hash)
    expect(route.screen).toBe('history')
    expect(route.path).toEqual(['albums', 'a/b ü'])
    expect([...route.query]).toEqual([['q', 'red boat & sea'], ['page', '2']])
  })

  it('keep the commas of lists readable', () => expect(href('compare', ['12,15'])).toBe('#/compare/12,15'))

  it('fall back to Create', () => {
    for (const hash of ['', '#', '#/', '#/nowhere/1', '#/%E0%A4%A']) expect(parse(hash).screen).toBe('create')
  })
})
