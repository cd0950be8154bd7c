/** Pictures of any program that were dropped, pasted or chosen, and what each says of how it was made. */
import { ApiError, send, type Schemas } from '../api'

export type Reading = Schemas['ImportView']

/** A file and what the server reads from it. */
export class Imported {
  readonly file: File
  /** Object URL of the picture. */
  readonly url: string
  view = $state.raw<Reading>()
  error = $state.raw<ApiError>()

  constructor(file: File) {
    this.file = file
    this.url = URL.createObjectURL(file)
  }

  async read(): Promise<void> {
    this.error = undefined
    try {
      // As bytes: what a file is called says nothing of what is in it.
      this.view = await send<Reading>('POST', '/api/v1/imports', this.file, { 'content-type': 'application/octet-stream' })
    } catch (error) {
      if (!(error instanceof ApiError)) throw error
      this.error = error
    }
  }
}

class Imports {
  all = $state.raw<Imported[]>([])
  index = $state(0)

  get current(): Imported | undefined {
    return this.all[this.index]
  }

  /** Read files, one after the other, and show the first one; in place of those that were shown before. */
  async open(files: Iterable<File>): Promise<void> {
    this.close()
    const all = [...files].map((file) => new Imported(file))
    this.all = all
    for (const one of all) if (this.all === all) await one.read()
  }

  close(): void {
    for (const one of this.all) URL.revokeObjectURL(one.url)
    this.all = []
    this.index = 0
  }
}

export const imports = new Imports()
