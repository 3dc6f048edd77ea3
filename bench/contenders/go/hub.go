package main

// clients is what the two variants of the hub differ in: how it finds the client of a device.
type clients interface {
	find(deviceID string) *Client
	add(client *Client)
	remove(client *Client)
}

// scannedClients is a set, gone through for each message.
type scannedClients map[*Client]bool

func (s scannedClients) find(deviceID string) *Client {
	for client := range s {
		if client.deviceID == deviceID {
			return client
		}
	}
	return nil
}

func (s scannedClients) add(client *Client)    { s[client] = true }
func (s scannedClients) remove(client *Client) { delete(s, client) }

// mappedClients is a map by device.
type mappedClients map[string]*Client

func (m mappedClients) find(deviceID string) *Client { return m[deviceID] }
func (m mappedClients) add(client *Client)           { m[client.deviceID] = client }
func (m mappedClients) remove(client *Client)        { delete(m, client.deviceID) }

// Message is one text message for one device.
type Message struct {
	deviceID string
	payload  []byte
}

type registration struct {
	client   *Client
	accepted chan bool
}

// Hub knows the connected devices. Its goroutine (run) owns them; all else speaks to it over its channels.
type Hub struct {
	clients    clients
	register   chan registration
	unregister chan *Client
	broadcast  chan Message
	sendBuffer int // messages that may wait for one client
}

func newHub(clients clients, sendBuffer int) *Hub {
	return &Hub{
		clients:    clients,
		register:   make(chan registration),
		unregister: make(chan *Client),
		broadcast:  make(chan Message, 256),
		sendBuffer: sendBuffer,
	}
}

// Register takes a client in; false if its device has one already.
func (h *Hub) Register(client *Client) bool {
	accepted := make(chan bool, 1)
	h.register <- registration{client, accepted}
	return <-accepted
}

// SendToDevice hands a message over to the hub, which drops it if the device is not connected.
func (h *Hub) SendToDevice(deviceID string, payload []byte) {
	h.broadcast <- Message{deviceID, payload}
}

func (h *Hub) run() {
	for {
		select {
		case request := <-h.register:
			free := h.clients.find(request.client.deviceID) == nil
			if free {
				h.clients.add(request.client)
			}
			request.accepted <- free
		case client := <-h.unregister:
			h.drop(client)
		case message := <-h.broadcast:
			client := h.clients.find(message.deviceID)
			if client == nil {
				continue
			}
			select {
			case client.send <- message.payload:
			default: // it does not keep up
				h.drop(client)
			}
		}
	}
}

// drop is called twice for a client that did not keep up: here, and when its connection ends.
func (h *Hub) drop(client *Client) {
	if h.clients.find(client.deviceID) == client {
		h.clients.remove(client)
		close(client.send)
	}
}
