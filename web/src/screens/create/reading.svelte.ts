/** How the server reads a prompt: asked for after each pause in typing. */
import { untrack } from 'svelte'
import { api, ApiError, data, type Schemas } from '../../lib/api'
import { draft } from '../../lib/state/draft.svelte'
import { marksOf, moved, type Analysis, type Mark } from './highlight'

const PAUSE_MS = 120

export class Reading {
  /** Of the text that `read` was called with last; between edits and the server's answer, moved along. */
  marks = $state.raw<Mark[]>([])
  /** Of the last text that the server has read; undefined for an empty one. */
  analysis = $state.raw<Analysis>()
  #text = ''
  #timer: ReturnType<typeof setTimeout> | undefined
  #last = 0

  /** Follow the text. Returns what stops it. */
  read(text: string): () => void {
    const { model, prompt_syntax, wildcards, steps } = draft.request
    this.marks = moved(untrack(() => this.marks), this.#text, text)
    this.#text = text
    clearTimeout(this.#timer)
    this.#timer = setTimeout(() => void this.#ask({ prompt: text, model, prompt_syntax, wildcards, ...(steps ? { steps } : {}) }), PAUSE_MS)
    return () => clearTimeout(this.#timer)
  }

  async #ask(asked: Partial<Schemas['PromptBody']> & { prompt: string }): Promise<void> {
    const number = ++this.#last
    try {
      const analysis = asked.prompt ? await data(api.POST('/api/v1/prompts/analysis', { body: asked as Schemas['PromptBody'] })) : undefined
      if (number !== this.#last) return
      this.analysis = analysis
      if (asked.prompt === this.#text) this.marks = analysis ? marksOf(asked.prompt, analysis) : []
    } catch (error) {
      if (!(error instanceof ApiError)) throw error
      if (number === this.#last) this.analysis = undefined // the estimate reports a broken prompt, the banner an unreachable server
    }
  }

  /** Tokens of the first chunks, as "12 of 75" counts them. */
  get count(): { tokens: number; of: number; exact: boolean } | undefined {
    const { analysis } = this
    if (!analysis) return undefined
    const size = analysis.chunk_size
    return { tokens: analysis.tokens, of: Math.max(1, Math.ceil(analysis.tokens / size)) * size, exact: analysis.exact }
  }

  /** Words that the model was never taught. */
  get unknownWords(): string[] {
    const words = this.analysis?.names.filter((name) => name.kind === 'word' && !name.known) ?? []
    return [...new Set(words.map((name) => name.name))]
  }

  /** What would not act as it was meant. */
  get problems(): string[] {
    const { analysis } = this
    if (!analysis) return []
    const names = analysis.names.filter((name) => name.kind !== 'word' && !name.known)
    const warnings = analysis.steps.flatMap((range) => range.parts.flatMap((part) => part.warnings))
    return [...new Set([...names.map((name) => name.problem ?? name.name), ...warnings])]
  }
}
