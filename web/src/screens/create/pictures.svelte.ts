/** What is done with the pictures on the stage: by keys to those that are chosen, or else to the one that has focus or is pointed at. */
import { tick } from 'svelte'
import { SvelteSet } from 'svelte/reactivity'
import { t } from '../../i18n'
import { sets, type LiveJob, type LiveSet } from '../../lib/state/sets.svelte'
import { announce } from '../../ui/announce.svelte'
import { toast, toastError } from '../../ui/toasts.svelte'

export const VARIANTS = 4

class Pictures {
  /** Ids of jobs. */
  readonly chosen = new SvelteSet<string>()
  /** Tell which picture it is now: a place goes on to the next one when its own is stopped. */
  focused: (() => LiveJob) | undefined
  pointed: (() => LiveJob) | undefined

  /** What an act without a picture of its own is for; empty where there is none. */
  get targets(): LiveJob[] {
    if (this.chosen.size) return [...this.chosen].flatMap((id) => sets.job(id) ?? [])
    const one = this.focused ?? this.pointed
    return one ? [one()] : []
  }

  choose(job: LiveJob): void {
    if (!this.chosen.delete(job.id)) this.chosen.add(job.id)
    announce(t.create.chosen(this.chosen.size))
  }

  chooseAll(set: LiveSet): void {
    for (const job of set.shown) this.chosen.add(job.id)
    announce(t.create.chosen(this.chosen.size))
  }

  /** Mark as kept, or where all are kept, not any more. */
  keep(jobs: LiveJob[]): void {
    const done = withImage(jobs)
    const kept = !done.every((job) => job.image!.kept)
    void sets.keep(done, kept).then(() => announce(kept ? t.create.keptNow(done.length) : t.create.notKept(done.length)), toastError)
  }

  vary(jobs: LiveJob[]): void {
    for (const job of withImage(jobs)) sets.vary(job, VARIANTS).catch(toastError)
    this.chosen.clear()
  }

  refine(jobs: LiveJob[]): void {
    for (const job of withImage(jobs)) sets.refine(job).catch(toastError)
    this.chosen.clear()
  }

  /** Stop what is in work, of which the next seeds take the places, and put what is done into the trash. */
  remove(jobs: LiveJob[]): void {
    const place = placeOfFocus()
    for (const job of jobs.filter((one) => !one.ended && !one.stopping)) {
      const set = sets.setOf(job)
      const hasNoNext = set?.shown.length === 1 || set?.dial // a dial has one seed only
      void (hasNoNext ? sets.stop(job) : sets.replace(job)).catch(toastError)
    }
    const done = withImage(jobs)
    this.chosen.clear()
    if (!done.length) return
    sets.remove(done).then(() => toast({ text: t.create.deleted(done.length), undo: () => sets.remove(done, false).catch(toastError) }), toastError)
    void tick().then(() => focusAt(place))
  }
}

const withImage = (jobs: LiveJob[]): LiveJob[] => jobs.filter((job) => job.image && !job.deleted)

/** The focus goes on with the next picture when the one that has it goes. */
function placeOfFocus(): number {
  return [...document.querySelectorAll('.stage .open')].indexOf(document.activeElement?.closest('li')?.querySelector('.open') as Element)
}

function focusAt(place: number): void {
  const all = document.querySelectorAll<HTMLElement>('.stage .open')
  if (place >= 0) all[Math.min(place, all.length - 1)]?.focus()
}

export const pictures = new Pictures()
