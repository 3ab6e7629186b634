// The second client of the streaming tests: Kubernetes' own client library against an address that the daemon gave.
//
//	second-client exec spdy|websocket ADDRESS [tty]     stdin, stdout, stderr and exit code are the command's
//	second-client forward spdy|websocket ADDRESS PORT   prints the local port; until stdin ends
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"

	"k8s.io/apimachinery/pkg/util/httpstream"
	restclient "k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/client-go/util/exec"
)

func main() {
	if len(os.Args) < 4 {
		fail(errors.New("second-client exec|forward spdy|websocket ADDRESS .."))
	}
	address, err := url.Parse(os.Args[3])
	if err != nil {
		fail(err)
	}
	config := &restclient.Config{Host: address.Host, TLSClientConfig: restclient.TLSClientConfig{Insecure: true}}
	switch os.Args[1] {
	case "exec":
		err = run(config, os.Args[2], address, len(os.Args) > 4)
	case "forward":
		err = forward(config, os.Args[2], address, os.Args[4])
	default:
		err = fmt.Errorf("unknown: %s", os.Args[1])
	}
	var code exec.CodeExitError
	switch {
	case errors.As(err, &code):
		os.Exit(code.Code)
	case err != nil:
		fail(err)
	}
}

func run(config *restclient.Config, wire string, address *url.URL, tty bool) error {
	var executor remotecommand.Executor
	var err error
	if wire == "spdy" {
		executor, err = remotecommand.NewSPDYExecutor(config, "POST", address)
	} else {
		executor, err = remotecommand.NewWebSocketExecutor(config, "GET", address.String())
	}
	if err != nil {
		return err
	}
	options := remotecommand.StreamOptions{Stdin: os.Stdin, Stdout: os.Stdout, Tty: tty}
	if !tty {
		options.Stderr = os.Stderr
	}
	return executor.StreamWithContext(context.Background(), options)
}

func forward(config *restclient.Config, wire string, address *url.URL, port string) error {
	var dialer httpstream.Dialer
	if wire == "spdy" {
		transport, upgrader, err := spdy.RoundTripperFor(config)
		if err != nil {
			return err
		}
		dialer = spdy.NewDialer(upgrader, &http.Client{Transport: transport}, "POST", address)
	} else {
		tunnel, err := portforward.NewSPDYOverWebsocketDialer(address, config)
		if err != nil {
			return err
		}
		dialer = tunnel
	}
	stop, ready := make(chan struct{}), make(chan struct{})
	forwarder, err := portforward.NewOnAddresses(dialer, []string{"127.0.0.1"}, []string{":" + port}, stop, ready, io.Discard, os.Stderr)
	if err != nil {
		return err
	}
	go func() {
		<-ready
		ports, err := forwarder.GetPorts()
		if err != nil {
			fail(err)
		}
		fmt.Println(ports[0].Local)
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(stop)
	}()
	return forwarder.ForwardPorts()
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(99)
}
