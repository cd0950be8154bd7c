/** The albums of the library, the one that was changed last first. */
import { api, ApiError, data, type Schemas } from '../api'

export type Album = Schemas['AlbumView']

class Albums {
  all = $state.raw<Album[]>([])
  loaded = $state(false)
  #reading: Promise<void> | undefined

  async load(): Promise<void> {
    try {
      this.all = await data(api.GET('/api/v1/albums'))
      this.loaded = true
    } catch (error) {
      if (!(error instanceof ApiError)) throw error // the list of pictures says it
    }
  }

  /** Read them unless they are here. */
  open(): Promise<void> {
    if (this.loaded) return Promise.resolve()
    this.#reading ??= this.load().finally(() => (this.#reading = undefined))
    return this.#reading
  }

  name(id: string): string | undefined {
    return this.all.find((album) => album.id === id)?.name
  }

  async create(name: string): Promise<Album> {
    const album = await data(api.POST('/api/v1/albums', { body: { name } }))
    this.all = [album, ...this.all]
    return album
  }

  async rename(id: string, name: string): Promise<void> {
    this.#put(await data(api.PATCH('/api/v1/albums/{album_id}', { params: { path: { album_id: id } }, body: { name } })))
  }

  async remove(id: string): Promise<void> {
    await data(api.DELETE('/api/v1/albums/{album_id}', { params: { path: { album_id: id } } }))
    this.all = this.all.filter((album) => album.id !== id)
  }

  /** Put pictures in or take them out, by their numbers. */
  async change(id: string, { add = [], remove = [] }: { add?: number[]; remove?: number[] }): Promise<Album> {
    const changed = await data(api.POST('/api/v1/albums/{album_id}/images', { params: { path: { album_id: id } }, body: { add, remove } }))
    this.#put(changed)
    return changed
  }

  #put(album: Album): void {
    this.all = this.all.map((one) => (one.id === album.id ? album : one))
  }
}

export const albums = new Albums()
