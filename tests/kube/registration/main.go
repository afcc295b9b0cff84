// Registers a CSI driver as kubelet does, with kubelet's own dial, and calls it as kubelet and the sidecars do.
//
//	registration SOCKET        SOCKET is the driver's, in kubelet's folder plugins_registry
//
// A unix socket's path as target and no authority is what a server may refuse: grpc-go sends the percent-encoded path as
// `:authority`, which other gRPC implementations take for no host.
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

const limit = 10 * time.Second

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: registration SOCKET")
		os.Exit(2)
	}
	if err := register(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "registration:", err)
		os.Exit(1)
	}
}

func unixDialer(ctx context.Context, path string) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, "unix", path)
}

// As k8s.io/kubernetes/pkg/kubelet/pluginmanager/operationexecutor, dial.
func dialRegistration(ctx context.Context, path string) (*grpc.ClientConn, error) {
	return grpc.DialContext(ctx, path,
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithBlock(), grpc.WithContextDialer(unixDialer))
}

// As k8s.io/kubernetes/pkg/volume/csi, newGrpcConn.
func dialDriver(path string) (*grpc.ClientConn, error) {
	return grpc.Dial(path, grpc.WithAuthority("localhost"),
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithContextDialer(unixDialer))
}

// As github.com/kubernetes-csi/csi-lib-utils/connection, connect.
func dialAsSidecar(path string) (*grpc.ClientConn, error) {
	return grpc.Dial("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
}

func register(socket string) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	conn, err := dialRegistration(ctx, socket)
	if err != nil {
		return fmt.Errorf("dial %s: %w", socket, err)
	}
	defer conn.Close()
	kubelet := registerapi.NewRegistrationClient(conn)
	info, err := kubelet.GetInfo(ctx, &registerapi.InfoRequest{})
	if err != nil {
		return fmt.Errorf("GetInfo: %w", err)
	}
	if info.Type != registerapi.CSIPlugin || info.Name == "" || len(info.SupportedVersions) == 0 {
		return fmt.Errorf("GetInfo answers %v", info)
	}
	if err := call(ctx, info.Endpoint); err != nil {
		return err
	}
	if _, err := kubelet.NotifyRegistrationStatus(ctx, &registerapi.RegistrationStatus{PluginRegistered: true}); err != nil {
		return fmt.Errorf("NotifyRegistrationStatus: %w", err)
	}
	fmt.Printf("registered %s at %s\n", info.Name, info.Endpoint)
	return nil
}

func call(ctx context.Context, endpoint string) error {
	driver, err := dialDriver(endpoint)
	if err != nil {
		return fmt.Errorf("dial %s: %w", endpoint, err)
	}
	defer driver.Close()
	node, err := csi.NewNodeClient(driver).NodeGetInfo(ctx, &csi.NodeGetInfoRequest{})
	if err != nil {
		return fmt.Errorf("NodeGetInfo: %w", err)
	}
	if node.NodeId == "" {
		return fmt.Errorf("NodeGetInfo answers no node: %v", node)
	}
	sidecar, err := dialAsSidecar(endpoint)
	if err != nil {
		return fmt.Errorf("dial unix://%s: %w", endpoint, err)
	}
	defer sidecar.Close()
	if _, err := csi.NewIdentityClient(sidecar).Probe(ctx, &csi.ProbeRequest{}); err != nil {
		return fmt.Errorf("Probe as a sidecar: %w", err)
	}
	return nil
}
