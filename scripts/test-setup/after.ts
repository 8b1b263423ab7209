/** Stops the database of this test run, once, after the last test file. */
import { runFolder } from '../../shared/test/cluster.ts'
import { dropCluster } from './drop-cluster.ts'

await dropCluster(runFolder)
