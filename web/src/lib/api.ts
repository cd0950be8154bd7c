/** Limner's API under /api/v1, typed by its OpenAPI description (`npm run types`). */
import createClient, { type Middleware } from 'openapi-fetch'
import type { components, paths } from './api.types'

export type Schemas = components['schemas']
export type Image = Schemas['ImageView']
export type Job = Schemas['JobView']
export type JobSet = Schemas['SetView']
export type Model = Schemas['ModelView']
export type GenerationRequest = Partial<Schemas['GenerationRequest']>

/** What a proxy answers while the server behind it is away. */
const GATEWAY = [502, 503, 504]

/** What the server answered instead, or that it could not be reached (`unreachable`). */
export class ApiError extends Error {
  readonly code: string
  readonly status: number
  readonly hint: string | null
  readonly fields: string[]
  readonly retryable: boolean

  constructor(problem: Partial<Schemas['Problem']>) {
    super(problem.detail ?? problem.title ?? 'The server gave no reason.')
    this.code = problem.code ?? 'unknown'
    this.status = problem.status ?? 0
    this.hint = problem.hint ?? null
    this.fields = problem.fields ?? []
    this.retryable = problem.retryable ?? GATEWAY.includes(this.status)
  }

  get unreachable(): boolean {
    return this.code === 'unreachable'
  }
}

/** Called when the server wants a key that it was not given. */
let onUnauthorised = (): void => undefined
export function whenUnauthorised(call: () => void): void {
  onUnauthorised = call
}

/** Of every request: a page of another origin cannot set it, so that the session's cookie alone changes nothing. */
const HEADERS = { 'X-Limner': 'studio' }

const named: Middleware = {
  onRequest({ request }) {
    for (const [name, value] of Object.entries(HEADERS)) request.headers.set(name, value)
    return request
  },
}

export const api = createClient<paths>({ baseUrl: '', fetch: (request: Request) => fetch(request) })
api.use(named)

interface Answer<T> {
  data?: T
  error?: unknown
  response: Response
}

/** The data of a call: `const set = await data(api.POST('/api/v1/jobs', { body }))`. Raises ApiError. */
export async function data<T>(call: Promise<Answer<T>>): Promise<T> {
  let answer: Answer<T>
  try {
    answer = await call
  } catch (error) {
    throw reasonOf(error)
  }
  if (!answer.response.ok) throw refused(answer.response, answer.error)
  return answer.data as T
}

/** As `data`, for bodies that are not JSON, such as a picture's bytes: `await send('POST', '/api/v1/uploads', file)`. */
export async function send<T>(method: string, path: string, body?: Blob | object, headers: Record<string, string> = {}): Promise<T> {
  const isBytes = body instanceof Blob
  let response: Response
  let text: string
  try {
    response = await fetch(path, {
      method,
      body: body === undefined ? undefined : isBytes ? body : JSON.stringify(body),
      headers: { ...HEADERS, ...(body && !isBytes ? { 'content-type': 'application/json' } : {}), ...headers },
    })
    text = await response.text()
  } catch (error) {
    throw reasonOf(error)
  }
  const value: unknown = text && response.headers.get('content-type')?.includes('json') ? JSON.parse(text) : text
  if (!response.ok) throw refused(response, value)
  return value as T
}

function refused(response: Response, body: unknown): ApiError {
  if (response.status === 401) onUnauthorised()
  const problem = typeof body === 'object' && body !== null ? (body as Partial<Schemas['Problem']>) : {}
  return new ApiError({ title: `${response.status} ${response.statusText}`, ...problem, status: response.status })
}

function reasonOf(error: unknown): unknown {
  const gone = error instanceof TypeError
  return gone ? new ApiError({ code: 'unreachable', detail: 'The server cannot be reached.', retryable: true }) : error
}

/** What a request would take; with a dial all its values together. Raises ApiError. */
export const estimateOf = (request: GenerationRequest, dial: Schemas['Dial'] | null = null): Promise<Schemas['EstimateView']> =>
  data(api.POST('/api/v1/estimates', { body: { request: request as Schemas['GenerationRequest'], dial } }))

/** A random id, also where the page came over plain HTTP and `crypto.randomUUID` is missing. */
export function randomId(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, '0')).join('')
}
