/** How the server reads a prompt, as coloured pieces of its text. */
import type { Schemas } from '../../lib/api'
import { same } from '../../lib/edits'

export type Analysis = Schemas['AnalysisView']

/** What a piece of the text is. `unknown` is a name that is not there, or a word that the model was never taught. */
export type PieceKind = 'plain' | 'heavier' | 'lighter' | 'name' | 'unknown'

export interface Mark {
  /** In UTF-16 units, as text fields count. */
  start: number
  end: number
  kind: Exclude<PieceKind, 'plain'>
}

/** The marks of a text that was analysed. Tokens are marked by their weights, names over them. */
export function marksOf(text: string, analysis: Analysis): Mark[] {
  const at = unitsOf(text)
  const mark = (span: { start: number; end: number }, kind: Mark['kind']): Mark => ({ start: at(span.start), end: at(span.end), kind })
  const tokens = analysis.steps.flatMap((range) => range.parts.flatMap((part) => part.tokens))
  return [
    ...tokens.filter((token) => token.weight !== 1).map((token) => mark(token, token.weight > 1 ? 'heavier' : 'lighter')),
    ...analysis.names.map((name) => mark(name, name.known ? 'name' : 'unknown')),
  ]
}

/** The marks after an edit, until the text is analysed anew: those before the change stay, those after it move along. */
export function moved(marks: Mark[], before: string, after: string): Mark[] {
  const { head, tail } = same(before, after)
  const shift = after.length - before.length
  return marks.flatMap((one) => {
    if (one.end <= head) return [one]
    if (one.start >= before.length - tail) return [{ ...one, start: one.start + shift, end: one.end + shift }]
    return []
  })
}

/** The text in pieces, one after the other. Where marks overlap, the last one in the list counts. */
export function pieces(text: string, marks: Mark[]): { text: string; kind: PieceKind }[] {
  const cuts = [...new Set([0, text.length, ...marks.flatMap((one) => [one.start, one.end])])].sort((a, b) => a - b)
  const found: { text: string; kind: PieceKind }[] = []
  for (let index = 0; index + 1 < cuts.length; index += 1) {
    const [start, end] = [cuts[index]!, cuts[index + 1]!]
    const kind = marks.findLast((one) => one.start <= start && one.end >= end)?.kind ?? 'plain'
    const last = found.at(-1)
    if (last?.kind === kind) last.text += text.slice(start, end)
    else found.push({ text: text.slice(start, end), kind })
  }
  return found
}

/** From code points, as the server counts, to UTF-16 units. */
function unitsOf(text: string): (points: number) => number {
  if (!/[\ud800-\udfff]/.test(text)) return (points) => points
  const starts: number[] = []
  let unit = 0
  for (const char of text) {
    starts.push(unit)
    unit += char.length
  }
  return (points) => starts[points] ?? text.length
}
