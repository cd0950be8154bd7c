import { ApiError } from './lib/api'
import { mount } from 'svelte'
import App from './App.svelte'
import { events } from './lib/events.svelte'
import { startNotices } from './lib/notices'
import { startPreferences } from './lib/preferences.svelte'
import { router } from './lib/router.svelte'
import { draft } from './lib/state/draft.svelte'
import { models } from './lib/state/models.svelte'
import { outbox } from './lib/state/outbox.svelte'
import { queue } from './lib/state/queue.svelte'
import { session } from './lib/state/session.svelte'
import { sets } from './lib/state/sets.svelte'
import { taste } from './lib/state/taste.svelte'
import { workers } from './lib/state/workers.svelte'
import { toastError } from './ui/toasts.svelte'
import './theme.css'

const RETRY_MS = 2000

startPreferences()
router.start()
const target = document.getElementById('app')!
target.replaceChildren()
mount(App, { target })
void begin()

/** Read what the studio shows, and follow it from then on. */
async function begin(): Promise<void> {
  await session.load()
  if (session.mustSignIn) return
  if (session.error) setTimeout(() => void begin(), RETRY_MS)
  if (!session.value) return
  events.start()
  sets.start()
  startNotices()
  queue.start()
  outbox.onSent((view) => sets.take(view))
  events.onReconnect(() => void outbox.flush().catch(toastError))
  events.on('job', ({ change }) => {
    if (change === 'done') void session.loadCost().catch(() => undefined)
  })
  events.onReconnect(() => void loadStatus())
  await Promise.all([draft.start(), sets.load(), models.load(), outbox.flush().catch(toastError)])
  await loadStatus()
}

/** What the status bar tells of devices and costs, and whether there is sorting by taste. Without a connection it is read when the stream of events is back. */
async function loadStatus(): Promise<void> {
  try {
    if (session.value?.account?.role === 'operator') await workers.load() // others may not see the devices
    await session.loadCost()
    await taste.load()
  } catch (error) {
    if (!(error instanceof ApiError)) throw error // it stays empty until then
  }
}
