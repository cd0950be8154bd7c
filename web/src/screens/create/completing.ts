/** What is completed in a prompt, and how LoRAs come into it and go. */
import type { Schemas } from '../../lib/api'
import { editBetween, type Edit } from '../../lib/edits'

export type Completion = Schemas['CompletionView']
type Kind = Completion['kind']

/** The beginning of a word before the caret. */
export interface Begun {
  start: number
  end: number
  query: string
  kinds: Kind[]
}

const LEAST_LETTERS = 2

/** What is being typed at the caret, or undefined where there is nothing to complete. */
export function begunAt(text: string, caret: number): Begun | undefined {
  const before = text.slice(0, caret)
  const tag = /<(?:[a-z]+:)?([^<>:,\n]*)$/i.exec(before)
  if (tag) return { start: tag.index, end: caret, query: tag[1]!, kinds: ['lora'] }
  const wildcard = /(?<![\w/])__([\w/-]*)$/.exec(before)
  if (wildcard) return { start: wildcard.index, end: caret, query: wildcard[1]!, kinds: ['wildcard'] }
  const word = /[\p{L}\p{N}][\p{L}\p{N}_'-]*$/u.exec(before)
  if (!word || word[0].length < LEAST_LETTERS || /^[\p{L}\p{N}_]/u.test(text.slice(caret))) return undefined
  return { start: word.index, end: caret, query: word[0], kinds: ['lora', 'embedding', 'style', 'wildcard', 'word'] }
}

/** The edit that takes a completion; a LoRA brings the first of its trigger words along. */
export function taking(text: string, begun: Begun, completion: Completion): Edit {
  const trigger = completion.kind === 'lora' ? completion.trigger_words[0] : undefined
  const added = trigger && !phrasesOf(text).includes(trigger.toLowerCase()) ? `, ${trigger}` : ''
  const replacement = completion.insert + added
  const caret = begun.start + replacement.length
  return { start: begun.start, end: begun.end, replacement, selectionStart: caret, selectionEnd: caret }
}

/** The edit that takes a network's tag out of a prompt, and those of its trigger words that stand alone between commas. */
export function removing(text: string, tag: string, triggerWords: string[]): Edit {
  const triggers = new Set(triggerWords.map((word) => word.toLowerCase()))
  const lines = text
    .replace(tag, '')
    .split('\n')
    .map((line) =>
      line
        .split(',')
        .filter((phrase, index, all) => !triggers.has(phrase.trim().toLowerCase()) && (phrase.trim() || (index === all.length - 1 && index > 0)))
        .map((phrase) => phrase.replace(/ {2,}/g, ' ').trimEnd())
        .join(',')
        .trimStart(),
    )
  return editBetween(text, lines.join('\n').trimEnd())
}

const phrasesOf = (text: string): string[] => text.toLowerCase().split(/[,\n]/).map((phrase) => phrase.trim())
