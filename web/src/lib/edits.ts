/** Edits of text fields that the browser's own undo takes back. */

/** Replace `text.slice(start, end)` by `replacement`; then select from `selectionStart` to `selectionEnd` of the new text. */
export interface Edit {
  start: number
  end: number
  replacement: string
  selectionStart: number
  selectionEnd: number
}

/** The smallest edit that makes one text of another, with the caret at its end. */
export function editBetween(before: string, after: string): Edit {
  const { head, tail } = same(before, after)
  const replacement = after.slice(head, after.length - tail)
  const caret = head + replacement.length
  return { start: head, end: before.length - tail, replacement, selectionStart: caret, selectionEnd: caret }
}

/** Number of characters that two texts share at their beginnings, and of those that follow them at their ends. */
export function same(before: string, after: string): { head: number; tail: number } {
  const most = Math.min(before.length, after.length)
  let head = 0
  while (head < most && before[head] === after[head]) head += 1
  let tail = 0
  while (tail < most - head && before[before.length - 1 - tail] === after[after.length - 1 - tail]) tail += 1
  return { head, tail }
}

/** Edit a text field as typing would: it gets focus and an event, and Ctrl+Z takes the edit back. */
export function apply(field: HTMLTextAreaElement, edit: Edit): void {
  field.focus()
  field.setSelectionRange(edit.start, edit.end)
  if (edit.replacement) document.execCommand('insertText', false, edit.replacement) // deprecated, and the only way into the undo stack
  else if (edit.start < edit.end) document.execCommand('delete')
  field.setSelectionRange(edit.selectionStart, edit.selectionEnd)
}
