// Runs containerd 1.6's own snapshotter suite against a hoistd on a socket.
package conformance

import (
	"context"
	"testing"

	api "github.com/containerd/containerd/api/services/snapshots/v1"
	_ "github.com/containerd/containerd/pkg/testutil"
	"github.com/containerd/containerd/snapshots"
	"github.com/containerd/containerd/snapshots/proxy"
	"github.com/containerd/containerd/snapshots/testsuite"
)

func TestSnapshotter(t *testing.T) {
	testsuite.SnapshotterSuite(t, suiteName, func(_ context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		daemon, err := startDaemon(root)
		if err != nil {
			return nil, nil, err
		}
		snapshotter := proxy.NewSnapshotter(api.NewSnapshotsClient(daemon.client), "hoist")
		return snapshotter, func() error { return daemon.stop(snapshotter.Close()) }, nil
	})
}
