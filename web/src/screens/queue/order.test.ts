import { describe, expect, it } from 'vitest'
import type { Job } from '../../lib/api'
import { groupBySet, movable, oneFurther } from './order'

const job = (id: string, set_id = 'a', state = 'queued', lane = 'interactive') => ({ id, set_id, state, lane }) as Job
const ids = (...all: string[]) => new Set(all)

describe('groups of the queue', () => {
  it('are the runs of a set, named the same when their first job ends', () => {
    const jobs = [job('1'), job('2'), job('3', 'b'), job('4')]
    expect(groupBySet(jobs).map(({ key, jobs }) => [key, jobs.map(({ id }) => id)])).toEqual([
      ['a 0', ['1', '2']],
      ['b 0', ['3']],
      ['a 1', ['4']],
    ])
    expect(groupBySet(jobs.slice(1))[0]!.key).toBe('a 0')
  })
})

describe('moving by one place', () => {
  const jobs = [job('0', 'a', 'running'), job('1'), job('2'), job('3'), job('4'), job('5', 'a', 'paused')]

  it('names the job to go before, and ends at the edges', () => {
    expect(oneFurther(jobs, ids('2'), -1)).toBe('1')
    expect(oneFurther(jobs, ids('2'), 1)).toBe('4')
    expect(oneFurther(jobs, ids('3'), 1)).toBe('last')
    expect(oneFurther(jobs, ids('4'), 1)).toBeUndefined()
    expect(oneFurther(jobs, ids('1'), -1)).toBeUndefined()
    expect(oneFurther(jobs, ids('0'), 1)).toBeUndefined()
  })

  it('takes several along, in their order', () => {
    expect(oneFurther(jobs, ids('2', '3'), -1)).toBe('1')
    expect(oneFurther(jobs, ids('1', '2'), 1)).toBe('4')
    expect(movable(jobs, ids('3', '1', '0'))).toEqual(['1', '3'])
  })

  it('stays within a lane', () => {
    const lanes = [job('1'), job('2', 'b', 'queued', 'batch'), job('3')]
    expect(oneFurther(lanes, ids('3'), -1)).toBe('1')
    expect(oneFurther(lanes, ids('2'), -1)).toBeUndefined()
  })
})
