/** The settings of a request, from the JSON schema that the server has of it. */
import type { GenerationRequest } from './api'
import type { FieldSchema, RequestSchema } from './state/models.svelte'

export type FieldName = keyof GenerationRequest

/** How a setting is edited. `json` is for those with parts of their own. */
export type Control = 'switch' | 'choice' | 'slider' | 'number' | 'parts' | 'words' | 'file' | 'text' | 'json'

export interface Setting {
  name: FieldName
  title: string
  group: string
  description: string
  unit?: string
  control: Control
  choices: string[]
  /** Names of the numbers of a `parts` setting. */
  parts: string[]
  whole: boolean
  least?: number
  most?: number
  step: number
  /** Other names for it in search, such as those of other programs. */
  also: string[]
}

/** Where a slider ends, when the server allows much more than anyone uses. */
const REACH = 5
const FAR = 20
const FILE_LENGTH = 1_000_000

/** The settings in the order of the schema. */
export function settingsOf(schema: RequestSchema): Setting[] {
  return Object.entries(schema.properties)
    .filter(([, field]) => field.group)
    .map(([name, field]) => settingOf(name as FieldName, field))
}

function settingOf(name: FieldName, field: FieldSchema): Setting {
  const type: FieldSchema = field.anyOf?.find((one) => one.type !== 'null') ?? field
  const whole = type.type === 'integer'
  const end = type.maximum ?? type.exclusiveMaximum
  const step = type.multipleOf ?? (whole ? 1 : (end ?? 1) <= 1 ? 0.05 : 0.1)
  const least = type.minimum ?? (type.exclusiveMinimum === undefined ? undefined : type.exclusiveMinimum + step)
  const most = type.maximum ?? (type.exclusiveMaximum === undefined ? undefined : type.exclusiveMaximum - step)
  return {
    name,
    title: field.title ?? name,
    group: field.group!,
    description: field.description ?? '',
    unit: field.unit,
    control: controlOf(field, type),
    choices: type.enum ?? [],
    parts: field.parts ?? type.prefixItems?.map((_, index) => String(index + 1)) ?? [],
    whole,
    least,
    most,
    step,
    also: field.also ?? [],
  }
}

function controlOf(field: FieldSchema, type: FieldSchema): Control {
  if (type.enum) return 'choice'
  if (type.type === 'boolean') return 'switch'
  if (type.type === 'integer' || type.type === 'number') {
    const bounded = (type.minimum ?? type.exclusiveMinimum) !== undefined && (type.maximum ?? type.exclusiveMaximum ?? Infinity) <= 65_536
    return bounded ? 'slider' : 'number'
  }
  if (type.type === 'string') return (type.maxLength ?? 0) > FILE_LENGTH ? 'file' : 'text'
  if (type.prefixItems) return 'parts'
  if (type.type === 'array' && (type.items?.type === 'string')) return 'words'
  return field.type === 'string' ? 'text' : 'json'
}

/** Where the slider of a setting ends; a number field takes more. */
export function reach(setting: Setting, byDefault: unknown): number {
  const most = setting.most ?? 1
  const usual = typeof byDefault === 'number' && byDefault > 0 ? byDefault : undefined
  if (usual === undefined || most <= FAR * usual) return most
  return Math.min(most, Math.ceil((usual * REACH) / setting.step) * setting.step)
}

/** The settings in which a request differs from the defaults. A setting that is not in the defaults has none. */
export function differing(request: GenerationRequest, defaults: Record<string, unknown>, settings: Setting[]): Setting[] {
  return settings.filter(({ name }) => {
    const value = request[name]
    return value !== undefined && value !== null && JSON.stringify(value) !== JSON.stringify(defaults[name] ?? null) && !isEmpty(value)
  })
}

const isEmpty = (value: unknown): boolean => Array.isArray(value) && value.length === 0

/** A value as text: `[["x", 1]]` too. */
export function shownValue(value: unknown, setting?: Setting): string {
  if (value === undefined || value === null || value === '') return ''
  if (typeof value === 'number') return `${Math.round(value * 1000) / 1000}${setting?.unit === 'pixels' ? ' px' : ''}`
  if (Array.isArray(value) && value.every((one) => typeof one !== 'object')) return value.join(', ')
  if (Array.isArray(value)) return String(value.length)
  return typeof value === 'object' ? JSON.stringify(value) : String(value)
}

/** Whether a setting is meant by some words: of its names, its group and its description. */
export function matches(setting: Setting, words: string): boolean {
  const text = [setting.name, setting.title, setting.group, setting.description, ...setting.also, ...setting.choices].join(' ').toLowerCase()
  return words.toLowerCase().split(/\s+/).every((word) => text.includes(word))
}
