import { expect, it } from 'vitest'
import { editBetween } from './edits'

it.each([
  ['a red boat', 'a blue boat'],
  ['aaa', 'aa'],
  ['', 'boat'],
  ['boat', ''],
  ['boat', 'boat'],
])('makes %j into %j', (before, after) => {
  const edit = editBetween(before, after)
  expect(before.slice(0, edit.start) + edit.replacement + before.slice(edit.end)).toBe(after)
})
