/**
 * Weights of phrases in a prompt, as Ctrl+↑ and Ctrl+↓ change them: "boat" ⇄ "(boat:1.1)".
 *
 * With nothing selected it is the phrase around the caret: inside of a bracket with a weight, that bracket; inside of `<lora:…>`, its weight; else what
 * stands between commas and line ends. A weight of 1 leaves no bracket behind.
 */
import type { Edit } from './edits'

export const WEIGHT_STEP = 0.1
const MOST = 9.9
const WEIGHTED = /:\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*$/
const ENDS_PHRASE = /[,\n()[\]{}|<>]/

/** The edit that changes the weight at a selection by `change`, or undefined where there is no phrase. */
export function reweigh(text: string, from: number, to: number, change: number): Edit | undefined {
  return networkTag(text, from, to, change) ?? bracket(text, from, to, change) ?? phrase(text, from, to, change)
}

/** `<lora:name:0.8>`, where the selection lies inside of it. */
function networkTag(text: string, from: number, to: number, change: number): Edit | undefined {
  const start = text.lastIndexOf('<', Math.max(from - 1, 0))
  const close = text.indexOf('>', start)
  if (start < 0 || close < 0 || start > from || close + 1 < to) return undefined
  const parts = text.slice(start + 1, close).split(':')
  if (parts.length < 2) return undefined
  const weight = Number(parts[2] ?? 1)
  if (!Number.isFinite(weight)) return undefined
  const replacement = `<${[parts[0], parts[1], shown(added(weight, change)), ...parts.slice(3)].join(':')}>`
  return { start, end: close + 1, replacement, selectionStart: start, selectionEnd: start + replacement.length }
}

/** The innermost `(…:weight)` around the selection. */
function bracket(text: string, from: number, to: number, change: number): Edit | undefined {
  const own = text[from] === '(' && !isEscaped(text, from)
  for (let start = own ? from : opening(text, from); start >= 0; start = opening(text, start)) {
    const close = closing(text, start)
    if (close < 0) continue
    if (close + 1 < to) continue
    const inner = text.slice(start + 1, close)
    const found = WEIGHTED.exec(inner)
    if (!found) continue
    const words = inner.slice(0, found.index)
    const weight = added(Number(found[1]), change)
    return edit(start, close + 1, words, weight)
  }
  return undefined
}

function phrase(text: string, from: number, to: number, change: number): Edit | undefined {
  let [start, end] = [from, to]
  if (start === end) {
    while (start > 0 && !isEnd(text, start - 1)) start -= 1
    while (end < text.length && !isEnd(text, end)) end += 1
  }
  while (start < end && /\s/.test(text[start]!)) start += 1
  while (end > start && /\s/.test(text[end - 1]!)) end -= 1
  return start < end ? edit(start, end, text.slice(start, end), added(1, change)) : undefined
}

function edit(start: number, end: number, words: string, weight: number): Edit {
  const plain = weight === 1
  const replacement = plain ? words : `(${words}:${shown(weight)})`
  const selectionStart = start + (plain ? 0 : 1)
  return { start, end, replacement, selectionStart, selectionEnd: selectionStart + words.length }
}

const added = (weight: number, change: number): number => Math.min(MOST, Math.max(-MOST, Math.round((weight + change) * 100) / 100))
const shown = (weight: number): string => String(weight)
const isEscaped = (text: string, index: number): boolean => /(?:^|[^\\])(?:\\\\)*\\$/.test(text.slice(0, index))
const isEnd = (text: string, index: number): boolean => ENDS_PHRASE.test(text[index]!) && !isEscaped(text, index)

/** The bracket that opens around a place: the last one before it that is not closed before it. */
function opening(text: string, place: number): number {
  let depth = 0
  for (let index = place - 1; index >= 0; index -= 1) {
    if (isEscaped(text, index)) continue
    if (text[index] === ')') depth += 1
    else if (text[index] === '(' && depth-- === 0) return index
  }
  return -1
}

function closing(text: string, open: number): number {
  let depth = 0
  for (let index = open + 1; index < text.length; index += 1) {
    if (isEscaped(text, index)) continue
    if (text[index] === '(') depth += 1
    else if (text[index] === ')' && depth-- === 0) return index
  }
  return -1
}
