/** Tells that pictures are done while the studio is not looked at: by its title, a sound, a notification. */
import { t } from '../i18n'
import { preferences } from './preferences.svelte'
import { sets, type LiveSet } from './state/sets.svelte'

let unseen = 0
let sound: AudioContext | undefined

export function startNotices(): void {
  sets.onEnd((set) => {
    if (document.visibilityState === 'visible' && document.hasFocus()) return
    const { title, sound: audible, system } = preferences.value.notices
    const done = set.jobs.filter((job) => job.state === 'done').length
    if (title) {
      unseen += done
      showCount()
    }
    if (audible) chime()
    if (system) notify(set, done)
  })
  for (const event of ['focus', 'pointerdown'] as const) window.addEventListener(event, seen)
}

/** Give the page a title, behind the number of pictures that were not seen yet. */
export function setTitle(text: string): void {
  document.title = text
  showCount()
}

function seen(): void {
  unseen = 0
  showCount()
}

function showCount(): void {
  const plain = document.title.replace(/^\(\d+\) /, '')
  document.title = unseen ? `(${unseen}) ${plain}` : plain
}

/** Two soft notes; browsers allow them once the page was clicked or typed into. */
export function chime(): void {
  sound ??= new AudioContext()
  for (const [at, hertz] of [[0, 660], [0.14, 880]] as const) {
    const begin = sound.currentTime + at
    const note = new OscillatorNode(sound, { frequency: hertz })
    const volume = new GainNode(sound, { gain: 0 })
    volume.gain.linearRampToValueAtTime(0.12, begin + 0.02)
    volume.gain.exponentialRampToValueAtTime(0.001, begin + 0.35)
    note.connect(volume).connect(sound.destination)
    note.start(begin)
    note.stop(begin + 0.4)
  }
}

function notify(set: LiveSet, done: number): void {
  if (Notification.permission !== 'granted') return
  const failed = set.jobs.length - done
  const text = done ? t.shell.done(done, set.prompt) : t.shell.failed(failed)
  // One tag for a set: of several open tabs, one notification shows.
  const note = new Notification('Limner', { body: text, tag: set.id, icon: set.jobs.find((job) => job.image)?.image?.thumbnail_url })
  note.onclick = () => {
    window.focus()
    note.close()
  }
}
