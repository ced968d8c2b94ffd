package conformance

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
)

// The suite asks more of snapshotters that it does not know; under this name it asks what overlay
// can do (renaming a directory of a lower layer is what it cannot).
const suiteName = "overlayfs"

// How long a hoistd may take until it listens, on a machine that is busy with other tests.
const startLimit = 30 * time.Second

// A hoistd with a root of its own; every case of the suite gets one.
type daemon struct {
	process *exec.Cmd
	client  *grpc.ClientConn
}

func startDaemon(root string) (*daemon, error) {
	program := os.Getenv("HOISTD")
	if program == "" {
		return nil, errors.New("HOISTD has to name the program")
	}
	// Beside the root, which is absolute: gRPC takes a relative path for a host name.
	socket := filepath.Join(filepath.Dir(root), "hoist.sock")
	process := exec.Command(program, "--root", root, "--socket", socket, "--no-pull")
	process.Stdout, process.Stderr = os.Stderr, os.Stderr
	if err := process.Start(); err != nil {
		return nil, err
	}
	started := &daemon{process: process}
	for limit := time.Now().Add(startLimit); ; time.Sleep(20 * time.Millisecond) {
		probe, err := net.Dial("unix", socket)
		if err == nil {
			probe.Close()
			break
		}
		if time.Now().After(limit) {
			started.stop(nil)
			return nil, fmt.Errorf("hoistd does not listen: %w", err)
		}
	}
	client, err := grpc.Dial("unix://"+socket, grpc.WithInsecure())
	if err != nil {
		started.stop(nil)
		return nil, err
	}
	started.client = client
	return started, nil
}

// Ends the daemon as systemd would. That it ends well is part of what is tested.
func (d *daemon) stop(earlier error) error {
	if d.client != nil {
		d.client.Close()
	}
	d.process.Process.Signal(os.Interrupt)
	if err := d.process.Wait(); err != nil && earlier == nil {
		return fmt.Errorf("hoistd ended badly: %w", err)
	}
	return earlier
}
