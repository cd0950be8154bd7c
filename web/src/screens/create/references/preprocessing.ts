/** The text that names a preprocessor and the values of its options: `canny`, `canny:50:150`. */
import type { Schemas } from '../../../lib/api'

type Option = Schemas['OptionView']

/** The name, and the values that follow it; those that are no numbers are left out. */
export function readPreprocessor(text: string): { name: string; values: number[] } {
  const [name = '', ...rest] = text.split(':')
  return { name, values: rest.map(Number).filter(Number.isFinite) }
}

/** The text of a preprocessor whose option at `index` has a new value; `undefined` is its default. */
export function withOption(text: string, options: Option[], index: number, value: number | undefined): string {
  const { name, values } = readPreprocessor(text)
  const given = options.map((option, at) => (at === index ? value : values[at]) ?? option.default)
  while (given.length && given.at(-1) === options[given.length - 1]!.default) given.pop()
  return [name, ...given].join(':')
}
