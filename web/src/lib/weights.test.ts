import { describe, expect, it } from 'vitest'
import { reweigh, WEIGHT_STEP } from './weights'

/** Marks stand for the selection: "a red| boat" is a caret, "a |red| boat" a selection. */
function after(marked: string, ...changes: number[]): string {
  let [from, to] = [marked.indexOf('|'), marked.lastIndexOf('|')]
  let text = marked.replaceAll('|', '')
  if (to > from) to -= 1
  for (const change of changes) {
    const edit = reweigh(text, from, to, change)
    if (!edit) return text
    text = text.slice(0, edit.start) + edit.replacement + text.slice(edit.end)
    ;[from, to] = [edit.selectionStart, edit.selectionEnd]
  }
  return text
}
const [up, down] = [WEIGHT_STEP, -WEIGHT_STEP]

describe('the weight at the caret', () => {
  it.each([
    ['a red| boat, sea', [up], '(a red boat:1.1), sea'],
    ['sky, a red |boat|, sea', [up], 'sky, a red (boat:1.1), sea'],
    ['sky, |a red boat|, sea', [up, up, up], 'sky, (a red boat:1.3), sea'],
    ['one\ntwo| three\nfour', [up], 'one\n(two three:1.1)\nfour'],
    ['(a red boat:1.1)|, sea', [up], '(a red boat:1.1), sea'],
    ['(a red| boat:1.1), sea', [down], 'a red boat, sea'],
    ['|(a boat:1.2)|, sea', [up], '(a boat:1.3), sea'],
    ['((red| boat:1.2), sea:0.8)', [down], '((red boat:1.1), sea:0.8)'],
    ['((red boat:1.2), sea|:0.8)', [up], '((red boat:1.2), sea:0.9)'],
    ['(plain |brackets)', [up], '((plain brackets:1.1))'],
    ['a smile \\(ma|nga\\), sea', [up], '(a smile \\(manga\\):1.1), sea'],
    ['a <lora:in|k:0.8> boat', [up], 'a <lora:ink:0.9> boat'],
    ['a <lora:in|k> boat', [down], 'a <lora:ink:0.9> boat'],
    [' , |, ', [up], ' , , '],
  ])('%s', (marked, changes, expected) => expect(after(marked, ...changes)).toBe(expected))

  it('leaves no bracket behind at 1, however often', () => {
    expect(after('sky, some| phrase,', up, down, down, up, up, down)).toBe('sky, some phrase,')
  })

  it('stays within what a weight may be', () => {
    expect(after('(boat|:9.9)', up)).toBe('(boat:9.9)')
  })
})
