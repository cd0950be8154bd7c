/** Pictures that a request starts from or is guided by. They are uploads: `sha256:` and the hash of their bytes. */
import { api, data, send, type Schemas } from '../api'
import { IMAGE_FIELDS } from '../picture'
import { draft } from './draft.svelte'
import { library } from './library.svelte'

const PREFIX = 'sha256:'

/** Whether a reference is that of an upload. */
export const isUpload = (reference: string): boolean => reference.startsWith(PREFIX)

/** Where the picture of a reference can be seen; undefined for one that only the server can read. */
export function addressOf(reference: string): string | undefined {
  if (isUpload(reference)) return `/api/v1/uploads/${reference.slice(PREFIX.length)}`
  return reference.startsWith('data:image/') ? reference : undefined
}

/** Upload a picture, and return its reference. Raises ApiError for what is none. */
export async function upload(picture: Blob): Promise<string> {
  // The server tells by the bytes what it is; a wrong name of the file is no reason to refuse it.
  const view = await send<Schemas['UploadView']>('POST', '/api/v1/uploads', picture, { 'content-type': 'application/octet-stream' })
  return view.reference
}

/** Upload a picture of the library by its id, and return its reference. Raises ApiError. */
export async function uploadImage(id: string): Promise<string> {
  const params = { path: { image_id: id } }
  return upload((await data(api.GET('/api/v1/images/{image_id}/file', { params, parseAs: 'blob' }))) as Blob)
}

class References {
  /** Whether the mask of the draft's picture is being painted. */
  masking = $state(false)

  /** Start from a picture: image-to-image. */
  startFrom(reference: string): void {
    this.clear()
    draft.set('image', reference)
  }

  /** Start from a picture of the library, by id or number, and with `mask` paint over what is to change. */
  async startFromImage(image: string, { mask = false } = {}): Promise<void> {
    const { id } = await library.get(image)
    const reference = await uploadImage(id)
    this.startFrom(reference)
    draft.origin = { image: id, relation: 'edited', fields: { image: reference } }
    this.masking = mask
  }

  /** Start from nothing but the prompt. */
  clear(): void {
    for (const field of IMAGE_FIELDS) draft.set(field, undefined)
  }
}

export const references = new References()
