// A gateway with echo and gorilla/websocket, around a hub like that of gorilla's chat example.
//
// --hub scan is the simplest hub there is: it goes through all clients for each message, and
// segmentio/kafka-go reads. --hub map finds the client in a map by device, and franz-go reads. Either way a device for
// which more messages wait than its channel holds is disconnected.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	port := flag.Int("port", 0, "port to listen on")
	kind := flag.String("hub", "map", "how the hub finds a device: scan or map")
	sendBuffer := flag.Int("send-buffer", 256, "messages that may wait for one device")
	var from source
	flag.StringVar(&from.bootstrap, "bootstrap", "", "host:port of Kafka")
	flag.StringVar(&from.topic, "topic", "", "topic to read")
	flag.StringVar(&from.group, "group", "", "consumer group")
	flag.Parse()
	if err := run(*port, *kind, *sendBuffer, from); err != nil {
		log.Fatal(err)
	}
}

func run(port int, kind string, sendBuffer int, from source) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	hub, consumer, err := build(kind, sendBuffer, from)
	if err != nil {
		return err
	}
	e := newServer(hub, consumer, []byte(os.Getenv("COCOA_JWT_SECRET")))
	if e.Listener, err = net.Listen("tcp", fmt.Sprintf(":%d", port)); err != nil {
		return err
	}
	go hub.run()
	go func() { log.Fatal(e.Start("")) }()
	fmt.Printf("listening on %d\n", port)
	return consumer.Run(ctx)
}

func build(kind string, sendBuffer int, from source) (*Hub, Consumer, error) {
	switch kind {
	case "scan":
		hub := newHub(scannedClients{}, sendBuffer)
		return hub, newSegmentioConsumer(hub, from), nil
	case "map":
		hub := newHub(mappedClients{}, sendBuffer)
		consumer, err := newFranzConsumer(hub, from)
		return hub, consumer, err
	}
	return nil, nil, fmt.Errorf("no hub of kind %q", kind)
}
