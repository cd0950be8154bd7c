import { compare } from './compare'
import { create } from './create'
import { dial } from './dial'
import { history } from './history'
import { imports } from './imports'
import { mask } from './mask'
import { models } from './models'
import { queue } from './queue'
import { references } from './references'
import { settings } from './settings'
import { common, keys, keyGroups, palette, shell, signIn } from './shell'
import { viewer } from './viewer'

export const en = { common, keys, keyGroups, palette, shell, signIn, create, dial, references, mask, imports, history, queue, models, settings, viewer, compare }
