// The kubelet's own log reader and CRI client on a container of ours.
//
//	kubelet-logs ENDPOINT LOG CONTAINER [follow]     stdout and stderr are the container's
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"go.opentelemetry.io/otel/trace/noop"
	remote "k8s.io/cri-client/pkg"
	"k8s.io/cri-client/pkg/logs"
)

func main() {
	if err := read(context.Background(), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func read(ctx context.Context, args []string) error {
	if len(args) < 3 {
		return fmt.Errorf("kubelet-logs ENDPOINT LOG CONTAINER [follow]")
	}
	runtime, err := remote.NewRemoteRuntimeService(ctx, args[0], 10*time.Second, noop.NewTracerProvider(), true)
	if err != nil {
		return err
	}
	options := &logs.LogOptions{Follow: len(args) > 3}
	return logs.ReadLogs(ctx, args[1], args[2], options, runtime, os.Stdout, os.Stderr)
}
