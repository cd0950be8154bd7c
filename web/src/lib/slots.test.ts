import { describe, expect, it } from 'vitest'
import { placed, type Place, type Placed } from './slots'

const job = (index: number, endedAt?: number | null): Placed => ({ id: `j${index}`, index, gone: endedAt !== undefined, endedAt: endedAt ?? null })
const shown = (places: Place[]) => places.map((place) => place.at(-1))

describe('places of a set', () => {
  it('are those of the jobs at first', () => {
    expect(shown(placed([], [job(0), job(1), job(2)], 3))).toEqual(['j0', 'j1', 'j2'])
  })

  it('are given to the next seed when one is stopped', () => {
    const before = placed([], [job(0), job(1), job(2)], 3)
    const after = placed(before, [job(0), job(1, null), job(2), job(3)], 3)
    expect(shown(after)).toEqual(['j0', 'j3', 'j2'])
    expect(shown(placed(after, [job(0), job(1, 5), job(2), job(3, 9), job(4)], 3))).toEqual(['j0', 'j4', 'j2'])
  })

  it('are given in the order of the stops, where it is not known which stands for which', () => {
    expect(shown(placed([], [job(0, 20), job(1), job(2, 10), job(3), job(4)], 3))).toEqual(['j4', 'j1', 'j3'])
  })

  it('are given as it is known which stands for which', () => {
    const jobs = [job(0, null), job(1), job(2, null), job(3)]
    expect(shown(placed([['j0'], ['j1'], ['j2']], jobs, 3, new Map([['j3', 'j2']])))).toEqual(['j0', 'j1', 'j3'])
  })

  it('grow for further pictures', () => {
    expect(shown(placed([['j0'], ['j1']], [job(0), job(1), job(2)], 2))).toEqual(['j0', 'j1', 'j2'])
  })
})
