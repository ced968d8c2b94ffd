// Runs containerd 2's own snapshotter suite against a hoistd on a socket.
package conformance

import (
	"context"
	"testing"

	api "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	_ "github.com/containerd/containerd/v2/pkg/testutil"
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
