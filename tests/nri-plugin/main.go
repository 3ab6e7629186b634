// A plugin of the NRI tests, on the library that plugins are made with.
//
//	nri-plugin SOCKET INDEX NAME [WISHES]
//
// WISHES is a JSON object (see type wishes); a plugin that the daemon has started finds it in its configuration instead.
// What it hears it writes as one JSON object per line, to standard output or to the file that its wishes name. Lines on
// standard input: `release` lets a held call go on, `update ID SHARES` asks for other limits.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
)

type wishes struct {
	// Where to write what is heard.
	Log string `json:"log"`
	// Calls that wait for `release`, the first time.
	Hold []string `json:"hold"`
	// Calls that fail.
	Fail []string `json:"fail"`
	// Only these events.
	Events []string `json:"events"`

	FailRequest   bool `json:"failRequest"`
	KeepConnected bool `json:"keepConnected"`

	// What new containers get.
	Adjust *api.ContainerAdjustment `json:"adjust"`
	// At the creation of a container: these shares for all containers of that name.
	UpdateName   string `json:"updateName"`
	UpdateShares uint64 `json:"updateShares"`
	// When a client changes limits: these shares instead.
	ChangeShares uint64 `json:"changeShares"`
	// Rejects containers with this variable.
	RejectEnv string `json:"rejectEnv"`
}

type plugin struct {
	mu      sync.Mutex
	out     io.Writer
	wishes  wishes
	held    map[string]bool
	release chan struct{}
	known   map[string]string
	stub    stub.Stub
}

type heard struct {
	Call       string              `json:"call"`
	Pod        *api.PodSandbox     `json:"pod,omitempty"`
	Container  *api.Container      `json:"container,omitempty"`
	Pods       []string            `json:"pods,omitempty"`
	Containers []string            `json:"containers,omitempty"`
	Resources  *api.LinuxResources `json:"resources,omitempty"`
	Text       string              `json:"text,omitempty"`
}

func (p *plugin) write(what heard) {
	p.mu.Lock()
	defer p.mu.Unlock()
	line, err := json.Marshal(what)
	if err != nil {
		line = []byte(fmt.Sprintf(`{"call":"error","text":%q}`, err.Error()))
	}
	fmt.Fprintf(p.out, "%s\n", line)
}

func contains(list []string, name string) bool {
	for _, known := range list {
		if known == name {
			return true
		}
	}
	return false
}

func (p *plugin) hear(_ context.Context, what heard) error {
	p.write(what)
	p.mu.Lock()
	hold := contains(p.wishes.Hold, what.Call) && !p.held[what.Call]
	p.held[what.Call] = true
	p.mu.Unlock()
	if hold {
		// Beyond the limit of the call, of which its context knows.
		<-p.release
	}
	if contains(p.wishes.Fail, what.Call) {
		return errors.New(what.Call + " is not wanted")
	}
	return nil
}

func (p *plugin) Configure(_ context.Context, config, runtime, version string) (stub.EventMask, error) {
	if config != "" {
		if err := json.Unmarshal([]byte(config), &p.wishes); err != nil {
			return 0, err
		}
		if p.wishes.Log != "" {
			file, err := os.OpenFile(p.wishes.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
			if err != nil {
				return 0, err
			}
			p.out = file
		}
	}
	text := fmt.Sprintf("%s %s %s %d", runtime, version, p.stub.RuntimeNRIVersion(), p.stub.RequestTimeout().Milliseconds())
	p.write(heard{Call: "Configure", Text: text})
	if len(p.wishes.Events) == 0 {
		return 0, nil
	}
	return api.ParseEventMask(p.wishes.Events...)
}

func (p *plugin) Synchronize(ctx context.Context, pods []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
	what := heard{Call: "Synchronize"}
	for _, pod := range pods {
		what.Pods = append(what.Pods, pod.GetId())
	}
	for _, container := range containers {
		what.Containers = append(what.Containers, container.GetId())
		p.know(container)
	}
	return nil, p.hear(ctx, what)
}

func (p *plugin) know(container *api.Container) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.known[container.GetName()] = container.GetId()
}

func (p *plugin) RunPodSandbox(ctx context.Context, pod *api.PodSandbox) error {
	return p.hear(ctx, heard{Call: "RunPodSandbox", Pod: pod})
}

func (p *plugin) UpdatePodSandbox(ctx context.Context, pod *api.PodSandbox, _, resources *api.LinuxResources) error {
	return p.hear(ctx, heard{Call: "UpdatePodSandbox", Pod: pod, Resources: resources})
}

func (p *plugin) PostUpdatePodSandbox(ctx context.Context, pod *api.PodSandbox) error {
	return p.hear(ctx, heard{Call: "PostUpdatePodSandbox", Pod: pod})
}

func (p *plugin) StopPodSandbox(ctx context.Context, pod *api.PodSandbox) error {
	return p.hear(ctx, heard{Call: "StopPodSandbox", Pod: pod})
}

func (p *plugin) RemovePodSandbox(ctx context.Context, pod *api.PodSandbox) error {
	return p.hear(ctx, heard{Call: "RemovePodSandbox", Pod: pod})
}

func shares(id string, value uint64) *api.ContainerUpdate {
	update := &api.ContainerUpdate{}
	update.SetContainerId(id)
	update.SetLinuxCPUShares(value)
	return update
}

func (p *plugin) CreateContainer(ctx context.Context, pod *api.PodSandbox, container *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	if err := p.hear(ctx, heard{Call: "CreateContainer", Pod: pod, Container: container}); err != nil {
		return nil, nil, err
	}
	var updates []*api.ContainerUpdate
	p.mu.Lock()
	if id := p.known[p.wishes.UpdateName]; id != "" && p.wishes.UpdateShares != 0 {
		updates = append(updates, shares(id, p.wishes.UpdateShares))
	}
	p.mu.Unlock()
	p.know(container)
	return p.wishes.Adjust, updates, nil
}

func (p *plugin) PostCreateContainer(ctx context.Context, pod *api.PodSandbox, container *api.Container) error {
	return p.hear(ctx, heard{Call: "PostCreateContainer", Pod: pod, Container: container})
}

func (p *plugin) StartContainer(ctx context.Context, pod *api.PodSandbox, container *api.Container) error {
	return p.hear(ctx, heard{Call: "StartContainer", Pod: pod, Container: container})
}

func (p *plugin) PostStartContainer(ctx context.Context, pod *api.PodSandbox, container *api.Container) error {
	return p.hear(ctx, heard{Call: "PostStartContainer", Pod: pod, Container: container})
}

func (p *plugin) UpdateContainer(ctx context.Context, pod *api.PodSandbox, container *api.Container, resources *api.LinuxResources) ([]*api.ContainerUpdate, error) {
	err := p.hear(ctx, heard{Call: "UpdateContainer", Pod: pod, Container: container, Resources: resources})
	if err != nil || p.wishes.ChangeShares == 0 {
		return nil, err
	}
	return []*api.ContainerUpdate{shares(container.GetId(), p.wishes.ChangeShares)}, nil
}

func (p *plugin) PostUpdateContainer(ctx context.Context, pod *api.PodSandbox, container *api.Container) error {
	return p.hear(ctx, heard{Call: "PostUpdateContainer", Pod: pod, Container: container})
}

func (p *plugin) StopContainer(ctx context.Context, pod *api.PodSandbox, container *api.Container) ([]*api.ContainerUpdate, error) {
	return nil, p.hear(ctx, heard{Call: "StopContainer", Pod: pod, Container: container})
}

func (p *plugin) RemoveContainer(ctx context.Context, pod *api.PodSandbox, container *api.Container) error {
	return p.hear(ctx, heard{Call: "RemoveContainer", Pod: pod, Container: container})
}

func (p *plugin) ValidateContainerAdjustment(ctx context.Context, request *api.ValidateContainerAdjustmentRequest) error {
	if err := p.hear(ctx, heard{Call: "ValidateContainerAdjustment", Pod: request.GetPod(), Container: request.GetContainer()}); err != nil {
		return err
	}
	owner, claimed := request.GetOwners().EnvOwner(request.GetContainer().GetId(), p.wishes.RejectEnv)
	if claimed {
		return fmt.Errorf("%s may not set %s", owner, p.wishes.RejectEnv)
	}
	return nil
}

func (p *plugin) commands() {
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		switch {
		case len(words) == 1 && words[0] == "release":
			p.release <- struct{}{}
		case len(words) == 3 && words[0] == "update":
			value, err := strconv.ParseUint(words[2], 10, 64)
			if err != nil {
				p.write(heard{Call: "error", Text: err.Error()})
				continue
			}
			failed, err := p.stub.UpdateContainers([]*api.ContainerUpdate{shares(words[1], value)})
			p.write(heard{Call: "updated", Text: fmt.Sprintf("%d failed, error %v", len(failed), err)})
		default:
			p.write(heard{Call: "error", Text: "unknown: " + lines.Text()})
		}
	}
}

func main() {
	p := &plugin{out: os.Stdout, held: map[string]bool{}, known: map[string]string{}, release: make(chan struct{}, 16)}
	var options []stub.Option
	launched := os.Getenv("NRI_PLUGIN_SOCKET") != ""
	if !launched {
		if len(os.Args) < 4 {
			fmt.Fprintln(os.Stderr, "nri-plugin SOCKET INDEX NAME [WISHES]")
			os.Exit(2)
		}
		options = append(options, stub.WithSocketPath(os.Args[1]), stub.WithPluginIdx(os.Args[2]), stub.WithPluginName(os.Args[3]))
		if len(os.Args) > 4 {
			if err := json.Unmarshal([]byte(os.Args[4]), &p.wishes); err != nil {
				fmt.Fprintln(os.Stderr, "wishes:", err)
				os.Exit(2)
			}
		}
	}
	policy := &api.FailurePolicy{FailRequest: p.wishes.FailRequest, KeepConnected: p.wishes.KeepConnected}
	options = append(options, stub.WithFailurePolicy(policy), stub.WithOnClose(func() {
		p.write(heard{Call: "closed"})
		os.Exit(0)
	}))
	var err error
	if p.stub, err = stub.New(p, options...); err == nil {
		if !launched {
			go p.commands()
		}
		err = p.stub.Run(context.Background())
	}
	p.write(heard{Call: "ended", Text: fmt.Sprint(err)})
}
