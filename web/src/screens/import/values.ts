/** Values of settings as text for people. */

/** A value of a request or of a file's metadata: `0.8`, `ink 0.8, watercolour 0.5`. */
export function textOf(value: unknown): string {
  if (value === null || value === undefined || value === '') return '–'
  if (Array.isArray(value)) return value.map(textOf).join(', ')
  if (typeof value !== 'object') return String(value)
  const fields = Object.entries(value).filter(([, one]) => one !== null)
  const { name, weight } = value as { name?: unknown; weight?: unknown }
  if (typeof name === 'string' && fields.every(([key]) => ['name', 'weight', 'text_weight'].includes(key))) {
    return weight === undefined ? name : `${name} ${textOf(weight)}`
  }
  return fields.map(([key, one]) => `${key}: ${textOf(one)}`).join(', ')
}

/** The name of a field for people, where the server gives none: `Guidance scale`. */
export function labelOf(field: string): string {
  const words = field.replaceAll('_', ' ').trim()
  return words.charAt(0).toUpperCase() + words.slice(1)
}
