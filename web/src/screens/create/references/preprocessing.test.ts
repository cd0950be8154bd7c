import { describe, expect, it } from 'vitest'
import { readPreprocessor, withOption } from './preprocessing'

const CANNY = [
  { name: 'low', default: 100, whole: false },
  { name: 'high', default: 200, whole: false },
]

describe('the text of a preprocessor', () => {
  it('has a name and values', () => {
    expect(readPreprocessor('canny')).toEqual({ name: 'canny', values: [] })
    expect(readPreprocessor('canny:50:150')).toEqual({ name: 'canny', values: [50, 150] })
    expect(readPreprocessor('canny:x')).toEqual({ name: 'canny', values: [] })
  })

  it('says no more than differs from the defaults', () => {
    expect(withOption('canny', CANNY, 0, 50)).toBe('canny:50')
    expect(withOption('canny', CANNY, 1, 150)).toBe('canny:100:150')
    expect(withOption('canny:50', CANNY, 1, 150)).toBe('canny:50:150')
    expect(withOption('canny:50:150', CANNY, 1, undefined)).toBe('canny:50')
    expect(withOption('canny:50:150', CANNY, 0, undefined)).toBe('canny:100:150')
    expect(withOption('canny:50', CANNY, 0, 100)).toBe('canny')
  })
})
