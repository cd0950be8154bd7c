/**
 * Branches in time: other words from a step on, written as `[before:after:step]` of the prompt language.
 *
 * `schedules` proposes how to write it, the smallest change first. Whether a proposal does what is wanted, `switches` says by the server's own reading of it.
 */
import type { GenerationRequest, Schemas } from './api'

/** Numbers, words, white space, and signs, an escaped one with its backslash. */
const PIECE = /\d*\.\d+|[\p{L}\p{N}_'’-]+|\s+|\\[^]|[^]/gu
const WEIGHT = /:\s*[+-]?[.\d]+\s*\)/y
const CLOSING: Record<string, string> = { '(': ')', '[': ']' }
const pieces = (text: string): string[] => text.match(PIECE) ?? []

/** Ways to write a prompt that is `before` for its first `step` steps, and `after` from then on. */
export function schedules(before: string, after: string, step: number): string[] {
  let [head, tail] = sharedWords(before, after)
  const found = new Set<string>()
  for (;;) {
    const parts = [before, after].map((text) => text.slice(head, text.length - tail))
    const [start, end] = [before.slice(0, head), before.slice(before.length - tail)]
    if (parts.every(isClosed)) found.add(`${start}${schedule(parts[0]!, parts[1]!, step)}${end}`)
    if (!head && !tail) return [...found]
    ;[head, tail] = around(start, end)
  }
}

function schedule(before: string, after: string, step: number): string {
  const texts = before && after ? `${escaped(before)}:${escaped(after)}` : after ? escaped(after) : `${escaped(before)}:`
  return `[${texts}:${step}]`
}

/** Number of characters of the words that two texts share at their beginnings, and of those at their ends. */
function sharedWords(before: string, after: string): [number, number] {
  const [one, other] = [pieces(before), pieces(after)]
  const most = Math.min(one.length, other.length)
  let [first, last] = [0, 0]
  while (first < most && one[first] === other[first]) first += 1
  while (last < most - first && one.at(-1 - last) === other.at(-1 - last)) last += 1
  return [one.slice(0, first).join('').length, one.slice(one.length - last).join('').length]
}

/** What of a beginning and an end lies outside of the brackets that are open between them; nothing where none are. */
function around(start: string, end: string): [number, number] {
  const opened = brackets(start).open.at(-1)
  const closed = brackets(end).close[0]
  return opened === undefined || closed === undefined ? [0, 0] : [opened, end.length - closed - 1]
}

/** Where brackets are that have no partner in a text. */
function brackets(text: string): { open: number[]; close: number[] } {
  const [open, close]: [number[], number[]] = [[], []]
  for (const { 0: sign, index } of text.matchAll(PIECE)) {
    if (sign === '(' || sign === '[') open.push(index)
    else if ((sign === ')' || sign === ']') && CLOSING[text[open.at(-1) ?? -1] ?? ''] === sign) open.pop()
    else if (sign === ')' || sign === ']') close.push(index)
  }
  return { open, close }
}

function isClosed(text: string): boolean {
  const { open, close } = brackets(text)
  return open.length + close.length === 0 && pieces(text).at(-1) !== '\\'
}

/** A text with a backslash before the colons and bars that would end a part of a schedule: all but those of weights, and within square brackets. */
function escaped(text: string): string {
  let square = 0
  return text.replace(PIECE, (sign, index: number) => {
    if (sign === '[') square += 1
    else if (sign === ']') square -= 1
    WEIGHT.lastIndex = index
    const ends = sign === '|' || (sign === ':' && !WEIGHT.test(text))
    return ends && square === 0 ? `\\${sign}` : sign
  })
}

/** A prompt, and how the server reads it. */
export interface Read {
  text: string
  analysis: Schemas['AnalysisView']
}

/** Whether a prompt is read as `before` at its first `step` steps, and as `after` at all others of `steps`. */
export function switches(branch: Read, before: Read, after: Read, step: number, steps: number): boolean {
  if (partsAt(branch, step + 1) === undefined || !usesSameNetworks(branch, before)) return false
  return Array.from({ length: steps }, (_, index) => index + 1).every((at) => partsAt(branch, at) === partsAt(at <= step ? before : after, at))
}

/** Whether two prompts name the same networks. These act from the first step on. */
export const usesSameNetworks = (one: Read, other: Read): boolean => networks(one) === networks(other)

const networks = ({ text, analysis }: Read): string => JSON.stringify(analysis.names.filter(({ kind }) => kind === 'lora' || kind === 'network').map((span) => cut(text, span)))

/** What is encoded at a step; undefined where that was not analysed. */
function partsAt({ text, analysis }: Read, step: number): string | undefined {
  const range = analysis.steps.find(({ first, last }) => first <= step && step <= last)
  return range && JSON.stringify(range.parts.map(({ weight, chunks, tokens }) => [weight, chunks, tokens.map((token) => [token.id ?? cut(text, token), token.weight])]))
}

/** A part of a text, which the server counts in code points. */
const cut = (text: string, { start, end }: { start: number; end: number }): string => [...text].slice(start, end).join('')

/** Why words cannot change during the steps of a picture. */
export type Obstacle = 'noPrompt' | 'literal' | 'sampler' | 'oneStep'

/**
 * The steps of a picture after which its words can change, while all up to them stay the same.
 *
 * @param steps Numbers of its steps, in order.
 * @param revisiting Names of the samplers that return to earlier steps.
 * @returns The steps, or why there are none.
 */
export function branchingSteps(request: GenerationRequest, steps: number[], revisiting: ReadonlySet<string>): number[] | Obstacle {
  if (!request.prompt?.trim()) return 'noPrompt'
  if (request.prompt_syntax === 'literal') return 'literal'
  const last = steps.at(-1) ?? 0
  const { hires_scale, hires_width, hires_height, hires_prompt } = request
  const first = hires_scale || hires_width || hires_height ? (request.steps ?? last) : last
  const end = hires_prompt == null ? last : first // a second pass with a prompt of its own keeps it
  const stays = (sampler: string | null | undefined): boolean => !revisiting.has(sampler ?? '')
  const inTime = steps.filter((step) => step < end)
  const found = inTime.filter((step) => step === first || stays(step < first ? request.sampler : (request.hires_sampler ?? request.sampler)))
  if (found.length) return found
  return inTime.length ? 'sampler' : 'oneStep'
}
